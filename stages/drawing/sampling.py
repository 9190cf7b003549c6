"""Text-to-image sampling by `StableDiffusionPipeline`, from a folder in diffusers layout.

Each image has a random generator of its own, seeded with its seed, from which the initial noise comes first: so variants of a
model that are given the same seeds start from the same noise. Images of one prompt never share a batch with another prompt's,
so editing one prompt leaves the bytes of the others alone.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from stages.drawing.config import SamplingConfig
from stages.drawing.loaded_models import Models, pipeline_of
from stages.drawing.noise_schedulers import NOISE_SCHEDULERS
from stages.drawing.recorded_unet import recorded
from stages.encoding.data_warnings import too_long
from stages.encoding.latents import images_together, vae_scale_factor
from stages.encoding.prompt_syntax import Syntax
from stages.encoding.prompts import embed_prompts, token_counts
from stages.pipeline.wording import in_place

logger = logging.getLogger(__name__)


def batch_of(seeds: Sequence[int], seed: int, batch_size: int) -> list[int]:
    """The seeds that a seed is drawn together with, itself among them: the last bits of an image depend on them."""
    start = list(seeds).index(seed) // batch_size * batch_size
    return list(seeds[start : start + batch_size])


def encode_prompt(models: Models, prompt: str, clip_skip: int = 0, syntax: Syntax = "plain") -> Tensor:
    """Embed one prompt.

    Returns:
        prompt_embeds: (1, 77, D), after the text encoder's final layer norm, on its device; with the syntax of A1111 it may be
            several times as long.
    """
    if models.word is not None:
        prompt = in_place(prompt, models.word.replaces, models.word.token)
    if syntax == "a1111":
        from stages.encoding.weighted_prompts import embed_weighted

        return embed_weighted(models.tokenizer, models.text_encoder, prompt, clip_skip).to(models.text_encoder.device)
    (tokens,) = token_counts(models.tokenizer, [prompt])
    for problem in too_long("prompt", {prompt: tokens}, models.tokenizer.model_max_length):
        logger.warning(problem)
    embeds = embed_prompts(models.tokenizer, models.text_encoder, [prompt], clip_skip, batch_size=1)
    return embeds.to(models.text_encoder.device)


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """A random generator for each image, on the CPU, so that every device gets the same noise."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def initial_latents(models: Models, of_images: Sequence[torch.Generator], resolution: int) -> Tensor:
    """Draw the noise that sampling starts from: (B, C, h, w), unit variance, float32, each image's from its own generator."""
    side = resolution // vae_scale_factor(models.vae)
    shape = (1, models.unet.config["in_channels"], side, side)
    return torch.cat([torch.randn(shape, generator=generator) for generator in of_images])


def draw(models: Models, prompts: Sequence[str], seeds: Sequence[int], config: SamplingConfig) -> Iterator[Image.Image]:
    """Draw every prompt with every seed, prompt by prompt.

    Raises:
        ValueError: `clip_skip` leaves out as many layers as the text encoder has; raised before the first image.
    """
    negative_prompt_embeds = encode_prompt(models, config.negative_prompt, config.clip_skip, config.prompt_syntax)
    return _draw(models, prompts, negative_prompt_embeds, seeds, config)


def _draw(
    models: Models, prompts: Sequence[str], negative_prompt_embeds: Tensor, seeds: Sequence[int], config: SamplingConfig
) -> Iterator[Image.Image]:
    empty = cache(partial(encode_prompt, models, "", config.clip_skip, config.prompt_syntax))
    with recorded(models.unet, models.recorder):
        for prompt in prompts:
            prompt_embeds = encode_prompt(models, prompt, config.clip_skip, config.prompt_syntax)
            negative_embeds = negative_prompt_embeds
            if prompt_embeds.shape != negative_embeds.shape:
                from stages.encoding.weighted_prompts import of_one_length

                prompt_embeds, negative_embeds = of_one_length(prompt_embeds, negative_embeds, empty())
            for start in range(0, len(seeds), config.batch_size):
                batch = seeds[start : start + config.batch_size]
                yield from sample(models, prompt_embeds, negative_embeds, batch, config)


def sample(
    models: Models, prompt_embeds: Tensor, negative_prompt_embeds: Tensor, seeds: Sequence[int], config: SamplingConfig
) -> list[Image.Image]:
    """Draw one prompt with several seeds in one batch."""
    return decode_latents(models.vae, denoise(models, prompt_embeds, negative_prompt_embeds, seeds, config))


@torch.inference_mode()
def denoise(
    models: Models, prompt_embeds: Tensor, negative_prompt_embeds: Tensor, seeds: Sequence[int], config: SamplingConfig
) -> Tensor:
    """Latents with several seeds, denoised together.

    Args:
        models: from `load_models`; the text encoder and the tokenizer are not used.
        prompt_embeds: (1, 77, D), of the one prompt, or (B, 77, D), of one an image.
        negative_prompt_embeds: (1, 77, D), of the negative prompt.
        seeds: one an image.
        config: `batch_size`, `negative_prompt` and `clip_skip` have done their work before.

    Returns:
        latents: (B, C, h, w), times the VAE's scaling factor.
    """
    of_images = generators(seeds)
    pipeline = pipeline_of(models, make_noise_scheduler(models.folder, config.noise_scheduler))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt_embeds=prompt_embeds.expand(len(seeds), -1, -1),
        negative_prompt_embeds=negative_prompt_embeds.expand(len(seeds), -1, -1),
        latents=initial_latents(models, of_images, config.resolution).to(prompt_embeds.dtype),
        generator=of_images,
        height=config.resolution,
        width=config.resolution,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        output_type="latent",
    ).images


def make_noise_scheduler(folder: Path, name: str) -> Any:
    """The noise scheduler called `name`, with the betas and the prediction type of the checkpoint.

    Where the checkpoint's noise schedule ends in noise alone, images begin there (Lin et al. 2023, section 3.3,
    arXiv:2305.08891).

    Raises:
        ValueError: the scheduler cannot begin there.
    """
    import diffusers

    found = NOISE_SCHEDULERS[name]
    make = getattr(diffusers, found.class_name)
    config = make.load_config(folder, subfolder="scheduler", local_files_only=True)
    settings = dict(found.settings)
    if config.get("rescale_betas_zero_snr"):
        if not found.zero_snr:
            raise ValueError(
                f"noise_scheduler: given {name!r}: {folder.name} begins in noise alone (rescale_betas_zero_snr), which "
                f"{found.class_name} cannot: take ddim, euler or dpmsolver++"
            )
        settings["timestep_spacing"] = "trailing"
    return make.from_config(config, **settings)


@torch.inference_mode()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> list[Image.Image]:
    """Turn latents (B, C, h, w), times the VAE's scaling factor, into RGB images.

    Raises:
        ValueError: the VAE gave something that is no number, as some do in float16.
    """
    scaled = latents.to(vae.dtype) / vae.config["scaling_factor"]
    scale = vae_scale_factor(vae)
    together = images_together(len(scaled), (scale * scaled.shape[3], scale * scaled.shape[2]))
    images = torch.cat([vae.decode(part, return_dict=False)[0] for part in scaled.split(together)])
    if not images.isfinite().all():
        raise ValueError(f"an image came out as NaN in {vae.dtype}; set runtime.dtype to float32 or bfloat16")
    images_of: Any = VaeImageProcessor().postprocess
    return images_of(images, output_type="pil")
