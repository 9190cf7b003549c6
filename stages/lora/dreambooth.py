"""What DreamBooth trains on: images of the subject under one prompt, and images of its class (Ruiz et al. 2023)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stages.encoding.data_warnings import say_problems, too_long
from stages.encoding.encoded_files import EncodedImages
from stages.encoding.latents import encode_images, load_vae
from stages.encoding.prompts import embed_prompts, load_text_encoder, token_counts
from stages.lora.batches import Examples, Stream
from stages.lora.config import DreamboothConfig
from stages.pipeline.png_text import read_png_text
from stages.pipeline.progress import track

CLASS_BATCH_SIZE = 8
INTERPOLATION = "lanczos"  # class images are drawn at the resolution, so nothing is resized as a rule


class ClassImages(NamedTuple):
    """Images of the class that the subject belongs to.

    Attributes:
        paths: none of them where prior preservation is off.
        prompts: the one prompt that they were made with; none where there are no images.
    """

    paths: Sequence[Path]
    prompts: tuple[str, ...]


def prompts_of(config: DreamboothConfig, class_images: ClassImages) -> list[str]:
    """The prompts in the order of their numbers: the instance prompt and, where there are class images, theirs.

    Raises:
        ValueError: there is no instance prompt.
    """
    if config.instance_prompt is None:
        raise ValueError("instance_prompt: is null: name the subject")
    return [config.instance_prompt, *class_images.prompts]


def read_class_images(folder: Path) -> ClassImages:
    """The class images of a folder, none of them if it is empty, with the prompt that they say they were made with.

    Raises:
        ValueError: one of them says no prompt, or they say several.
    """
    paths = sorted(folder.glob("*.png"))
    prompts = {read_png_text(path).get("prompt", "") for path in paths}
    if len(prompts) > 1 or "" in prompts:
        raise ValueError(f"{folder}: its images do not say with which one prompt they were made: run class_images again")
    return ClassImages(paths, tuple(prompts))


def dreambooth_streams(
    instance: EncodedImages, class_images: ClassImages, model: Path, config: DreamboothConfig, device: torch.device
) -> list[Stream]:
    """Embed the prompts and encode the class images; the text encoder and the VAE are let go of afterwards.

    Args:
        instance: images of the config.
        class_images: of the class; none of them leaves prior preservation out.
        model: in diffusers layout.
        config: names the subject; where the text encoder is trained, the examples get the numbers of their prompts (instance 0,
            class 1) in place of embeddings.
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
    examples = _under_one_prompt(instance, embeds[0])
    streams = [Stream("instance", examples)]
    if class_images.paths:
        vae = load_vae(model / "vae", device)
        square = (instance.resolution, instance.resolution)
        paths = track(class_images.paths, "class images encoded")
        mean, std = encode_images(vae, paths, square, INTERPOLATION, CLASS_BATCH_SIZE)
        names = [path.name for path in class_images.paths]
        encoded = EncodedImages(names, mean, std, vae.config["scaling_factor"], instance.resolution)
        examples = _under_one_prompt(encoded, embeds[1])
        streams.append(Stream("class", examples, config.prior_loss_weight))
    return streams


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
