"""What DreamBooth trains on: images of the subject under one prompt, and images of its class (Ruiz et al. 2023)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stages.lora.batches import Examples, Stream
from stages.lora.encoded import EncodedImages
from stages.lora.latents import encode_images, load_vae
from stages.lora.prompts import embed_prompts, load_text_encoder, token_counts

CLASS_BATCH_SIZE = 8
INTERPOLATION = "lanczos"  # class images are drawn at the resolution, so nothing is resized as a rule


@dataclass(frozen=True)
class Subject:
    """What the subject is called.

    Attributes:
        instance_prompt: of all of its images.
        class_prompt: of the class images.
        prior_loss_weight: of the class images in the loss.
        clip_skip: layers left out at the end of the text encoder.
        train_text_encoder: give the examples the numbers of their prompts (instance 0, class 1) in place of embeddings.
    """

    instance_prompt: str
    class_prompt: str
    prior_loss_weight: float
    clip_skip: int
    train_text_encoder: bool

    @property
    def prompts(self) -> list[str]:
        """The prompts in the order of their numbers."""
        return [self.instance_prompt, self.class_prompt]


def dreambooth_streams(
    instance: EncodedImages, class_paths: Sequence[Path], model: Path, subject: Subject, device: torch.device
) -> list[Stream]:
    """Embed the prompts and encode the class images; the text encoder and the VAE are let go of afterwards.

    Args:
        instance: images of the subject.
        class_paths: images of the class; none of them leaves prior preservation out.
        model: in diffusers layout.
        subject: what it is called.
        device: to encode on.
    """
    prompts = subject.prompts
    tokenizer, text_encoder = load_text_encoder(model, device)
    for prompt, tokens in zip(prompts, token_counts(tokenizer, prompts), strict=True):
        if tokens > tokenizer.model_max_length:
            print(f"warning: {tokens} tokens, {tokenizer.model_max_length} are read: {prompt}", file=sys.stderr)
    instance_embeds, class_embeds = (
        torch.arange(len(prompts))
        if subject.train_text_encoder
        else embed_prompts(tokenizer, text_encoder, prompts, subject.clip_skip, batch_size=1)
    )
    examples = _under_one_prompt(instance, instance_embeds)
    streams = [Stream("instance", examples)]
    if class_paths:
        vae = load_vae(model / "vae", device)
        square = (instance.resolution, instance.resolution)
        mean, std = encode_images(vae, class_paths, square, INTERPOLATION, CLASS_BATCH_SIZE)
        names = [path.name for path in class_paths]
        encoded = EncodedImages(names, mean, std, vae.config["scaling_factor"], instance.resolution)
        examples = _under_one_prompt(encoded, class_embeds)
        streams.append(Stream("class", examples, subject.prior_loss_weight))
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
