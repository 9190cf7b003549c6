"""What DreamBooth trains on: images of the subject under one prompt, and images of its class (Ruiz et al. 2023)."""

from pathlib import Path

import torch

from stages.encoding.data_warnings import say_problems, too_long
from stages.encoding.encoded_files import EncodedImages
from stages.encoding.prompts import embed_prompts, load_text_encoder, token_counts
from stages.lora.batches import Stream
from stages.lora.class_stream import ClassImages, ClassPrompts, class_streams
from stages.lora.config import DreamboothConfig
from stages.lora.examples import Examples, examples_of, split_held_out
from stages.pipeline.wording import refuse_unknown_sets


def instance_prompts(config: DreamboothConfig, instance: EncodedImages) -> list[str]:
    """The prompt of each image: the one of its image set, or else the one of all.

    Raises:
        ValueError: an image has none, or a set is named that no image belongs to.
    """
    sets = instance.image_sets or [""] * len(instance.file_names)
    refuse_unknown_sets("instance_prompts", config.instance_prompts, sets)
    prompts = [config.instance_prompts.get(each) or config.instance_prompt for each in sets]
    if None in prompts:
        name = sets[prompts.index(None)]
        of_set = f", and instance_prompts has none for the image set {name!r}" if name else ""
        raise ValueError(f"instance_prompt: is null{of_set}: name the subject")
    return [str(prompt) for prompt in prompts]


def prompts_of(config: DreamboothConfig, instance: EncodedImages, class_images: ClassImages) -> list[str]:
    """The prompts in the order of their numbers: those of the subjects and, where there are class images that count, theirs.

    Raises:
        ValueError: see `instance_prompts`.
    """
    of_subjects = dict.fromkeys(instance_prompts(config, instance))
    return [*of_subjects, *(class_images.prompts if config.prior_loss_weight else ())]


def dreambooth_streams(
    instance: EncodedImages, class_images: ClassImages, model: Path, config: DreamboothConfig, device: torch.device
) -> tuple[list[Stream], Examples | None]:
    """Embed the prompts and encode the class images; the text encoder and the VAE are let go of afterwards.

    The held-out images come apart.

    Args:
        instance: images of the subject.
        class_images: of the class; none of them leaves prior preservation out.
        model: in diffusers layout.
        config: names the subject; where the text encoder is trained, the examples get the numbers of their prompts (those of
            the subjects, then those of the class) in place of embeddings.
        device: to encode on.
    """
    prompts, of_images = prompts_of(config, instance, class_images), instance_prompts(config, instance)
    tokenizer, text_encoder = load_text_encoder(model, device)
    token_counts_of = dict(zip(prompts, token_counts(tokenizer, prompts), strict=True))
    say_problems(too_long("prompt", token_counts_of, tokenizer.model_max_length))
    embeds = (
        torch.arange(len(prompts))
        if config.train_text_encoder
        else embed_prompts(tokenizer, text_encoder, prompts, config.clip_skip, batch_size=1)
    )
    subjects = list(dict.fromkeys(of_images))
    examples = examples_of(
        instance, embeds[[subjects.index(prompt) for prompt in of_images]], embeds[0], config.unmasked_weight
    )
    of_class = ClassPrompts(embeds[len(subjects) :], embeds[0])
    kept, held_out = split_held_out(examples, instance.held_out)
    prior = class_streams(class_images, of_class, model, instance.resolution, config.prior_loss_weight, device)
    return [Stream("instance", kept), *prior], held_out
