"""Images of the prompts of a training, drawn by the UNet that is being trained."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stages.drawing.config import SamplingConfig
from stages.drawing.loaded_models import Models
from stages.drawing.sampling import decode_latents, denoise
from stages.encoding.latents import load_vae

NOISE_SCHEDULER, INFERENCE_STEPS, SEED = "dpmsolver++", 12, 0


def draw_previews(
    model: Path, unet: Any, prompt_embeds: Tensor, dtype: torch.dtype, guidance_scale: float, resolution: int
) -> list[Image.Image]:
    """Draw one image of each prompt, all from the same noise.

    Args:
        model: the folder, in diffusers layout, of the model whose UNet is trained; its VAE is loaded for this.
        unet: in the mode for inference.
        prompt_embeds: (1 + N, L, D) float32, of "" and of the N prompts.
        dtype: of the UNet's computation; other than float32, it is autocast.
        guidance_scale: weight of the prompts.
        resolution: pixels of one side.
    """
    nothing: Any = None
    models = Models(unet, load_vae(model / "vae", unet.device), nothing, nothing, model)
    config = SamplingConfig("", NOISE_SCHEDULER, INFERENCE_STEPS, guidance_scale, resolution, 1, 0, "plain")
    negative_prompt_embeds, *of_prompts = prompt_embeds[:, None]
    images = []
    for embeds in of_prompts:
        with torch.autocast(unet.device.type, dtype, enabled=dtype != torch.float32):
            latents = denoise(models, embeds, negative_prompt_embeds, [SEED], config)
        images += decode_latents(models.vae, latents)
    return images


def preview_recipe(model: Path, guidance_scale: float, resolution: int, clip_skip: int) -> dict[str, Any]:
    """What every preview depends on besides its prompt and what is trained, for `image_files.write_image`."""
    return {
        "model": model.name,
        "negative_prompt": "",
        "noise_scheduler": NOISE_SCHEDULER,
        "num_inference_steps": INFERENCE_STEPS,
        "guidance_scale": guidance_scale,
        "seed": SEED,
        "resolution": resolution,
        "clip_skip": clip_skip,
    }


def previewing(
    model: Path, guidance_scale: float, resolution: int, clip_skip: int
) -> tuple[Callable[[Path, Any, Tensor, torch.dtype], list[Image.Image]], dict[str, Any], int]:
    """How a training draws its previews: what draws them, what they all depend on, and `clip_skip`."""
    draw = partial(draw_previews, guidance_scale=guidance_scale, resolution=resolution)
    return draw, preview_recipe(model, guidance_scale, resolution, clip_skip), clip_skip
