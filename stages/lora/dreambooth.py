"""What DreamBooth trains on: images of the subject under one prompt, and images of its class (Ruiz et al. 2023)."""

from pathlib import Path

import torch
from torch import Tensor

from stages.encoding.data_warnings import say_problems, too_long
from stages.encoding.encoded_files import EncodedImages
from stages.encoding.prompts import embed_prompts, load_text_encoder, token_counts
from stages.lora.batches import Examples, Stream, split_held_out
from stages.lora.class_stream import ClassImages, ClassPrompts, class_streams
from stages.lora.config import DreamboothConfig


def prompts_of(config: DreamboothConfig, class_images: ClassImages) -> list[str]:
    """The prompts in the order of their numbers: the instance prompt and, where there are class images that count, theirs.

    Raises:
        ValueError: there is no instance prompt.
    """
    if config.instance_prompt is None:
        raise ValueError("instance_prompt: is null: name the subject")
    return [config.instance_prompt, *(class_images.prompts if config.prior_loss_weight else ())]


def dreambooth_streams(
    instance: EncodedImages, class_images: ClassImages, model: Path, config: DreamboothConfig, device: torch.device
) -> tuple[list[Stream], Examples | None]:
    """Embed the prompts and encode the class images; the text encoder and the VAE are let go of afterwards.

    The held-out images come apart.

    Args:
        instance: images of the subject.
        class_images: of the class; none of them leaves prior preservation out.
        model: in diffusers layout.
        config: names the subject; where the text encoder is trained, the examples get the numbers of their prompts (instance 0,
            those of the class from 1 on) in place of embeddings.
        device: to encode on.
    """
    prompts = prompts_of(config, class_images)
    tokenizer, text_encoder = load_text_encoder(model, device)
    token_counts_of = dict(zip(prompts, token_counts(tokenizer, prompts), strict=True))
    say_problems(too_long("prompt", token_counts_of, tokenizer.model_max_length))
    embeds = (
        torch.arange(len(prompts))
        if config.train_text_encoder
        else embed_prompts(tokenizer, text_encoder, prompts, config.clip_skip, batch_size=1)
    )
    of_class = ClassPrompts(embeds[1:], embeds[0])
    kept, held_out = split_held_out(_under_one_prompt(instance, embeds[0]), instance.held_out)
    prior = class_streams(class_images, of_class, model, instance.resolution, config.prior_loss_weight, device)
    return [Stream("instance", kept), *prior], held_out


def _under_one_prompt(images: EncodedImages, prompt_embeds: Tensor) -> Examples:
    """Examples that all have the same prompt: its embeddings, (L, D), or its number."""
    return Examples(
        images.mean,
        images.std,
        images.scaling_factor,
        prompt_embeds.expand(len(images.mean), *prompt_embeds.shape),
        prompt_embeds,
        tuple(images.file_names),
        images.shapes,
    )
