"""Text-to-image sampling from a folder in diffusers layout.

The same images as `StableDiffusionPipeline`, from its parts: the initial latents depend on the seed alone, so variants of a
model that are given the same seeds start from the same noise. Images of one prompt never share a batch with another
prompt's, so editing one prompt leaves the bytes of the others alone.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from stages.checkpoints.adapters.lora_files import read_lora
from stages.checkpoints.file_names import UNET_FILE, holds_whole_unet, lora_file
from stages.checkpoints.files.tensors import sha256
from stages.drawing.lora_loading import ADAPTER, attach, load_tuned_unet, match
from stages.encoding.prompts import last_layer, tokenize

logger = logging.getLogger(__name__)

NOISE_SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "pndm": "PNDMScheduler",
}


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    Attributes:
        noise_scheduler: a key of `NOISE_SCHEDULERS`; none of them adds noise after the initial latents.
        num_inference_steps: denoising steps.
        guidance_scale: weight of the prompt against the negative prompt; at 1 or less the negative prompt is not used.
        resolution: pixels of one side.
        batch_size: most images that are denoised together. Bytes depend on it.
        clip_skip: layers of the text encoder left out at its end; 0 is diffusers' None and A1111's "clip skip 1".
    """

    noise_scheduler: str
    num_inference_steps: int
    guidance_scale: float
    resolution: int
    batch_size: int
    clip_skip: int = 0


@dataclass(frozen=True)
class Models:
    """The parts of a Stable Diffusion checkpoint that drawing takes, on one device and in one dtype."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    folder: Path

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of the image for each pixel of the latents, along one side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)


def load_models(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Models:
    """Load a checkpoint for inference.

    Raises:
        OSError: the folder, or one of its parts, is missing.
    """
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(f"{folder}: no {', '.join(missing)} in it; expected a model in diffusers layout")
    empty = [part for part in ("unet", "vae", "text_encoder") if not any((folder / part).glob("*model*"))]
    if empty:
        raise FileNotFoundError(
            f"{folder}: no weights of {' and '.join(empty)} in it, as in the checkpoint: it draws no images; leave it out of "
            "sweep.bases, or have base fill it in"
        )
    disable_progress_bar()  # of loading: a flash a part
    local: dict[str, Any] = {"local_files_only": True}
    unet: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype, **local)
    vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype, **local)
    text_encoder: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype, **local)
    for part in (unet, vae, text_encoder):
        part.to(device).requires_grad_(False).eval()
    return Models(unet, vae, text_encoder, CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", **local), folder)


def load_lora(models: Models, path: Path, lora_scale: float = 1.0) -> None:
    """Put what was trained into a model: adapters of the UNet and of the text encoder, or all weights of the UNet.

    Args:
        models: changed in place.
        path: a file in diffusers' or kohya's keys, or a folder with `pytorch_lora_weights.safetensors`, or with the `unet/`
            of a full fine-tuning. Each layer's rank and alpha come from the file's metadata or from its `.alpha` keys; without
            both, alpha is the rank.
        lora_scale: the factor on what training added; 0 is the model without it. Of DoRA it is, as in PEFT, the factor on the
            LoRA, and the lengths of the rows stay those that were learnt.

    Raises:
        OSError: the file is missing.
        ValueError: the file holds no LoRA weights, something that is not read here, or weights of another architecture.
    """
    from diffusers.utils import set_weights_and_activate_adapters

    file = lora_file(path)
    if holds_whole_unet(file):
        load_tuned_unet(models.unet, file, lora_scale)
        return
    parts = {"unet": models.unet, "text_encoder": models.text_encoder}
    if lora_scale == 0:
        match(parts, read_lora(file))
        return
    held = attach(parts, file)
    for name in held:
        set_weights_and_activate_adapters(parts[name], [ADAPTER], [lora_scale])
    if "unet" in held and models.unet.dtype == torch.float32:
        # A tenth less time an image. Half precision would round the small update away.
        models.unet.fuse_lora()
        models.unet.unload_lora()


def describe(models: Models, sampling: Sampling, negative_prompt: str) -> dict[str, str]:
    """What an image depends on besides its prompt, its seed and a LoRA, as text: settings, and the digest of the UNet."""
    return {
        "clip_skip": str(sampling.clip_skip),
        "guidance_scale": f"{sampling.guidance_scale:g}",
        "negative_prompt": negative_prompt,
        "noise_scheduler": sampling.noise_scheduler,
        "num_inference_steps": str(sampling.num_inference_steps),
        "resolution": str(sampling.resolution),
        "unet_sha256": sha256(models.folder / "unet" / UNET_FILE),
    }


@torch.inference_mode()
def encode_prompt(models: Models, prompt: str, clip_skip: int = 0) -> Tensor:
    """Embed one prompt.

    Returns:
        prompt_embeds: (1, 77, D), after the text encoder's final layer norm.
    """
    text_encoder = models.text_encoder
    length = len(models.tokenizer(prompt).input_ids)
    if length > models.tokenizer.model_max_length:
        logger.warning("%d tokens are more than the text encoder reads; the end is cut off: %s", length, prompt)
    output = text_encoder(tokenize(models.tokenizer, [prompt]).to(text_encoder.device), output_hidden_states=True)
    return last_layer(text_encoder, output, clip_skip)


def initial_latents(models: Models, seeds: Sequence[int], resolution: int) -> Tensor:
    """Draw the noise that sampling starts from: (B, C, h, w), unit variance, float32, a function of each seed alone."""
    side = resolution // models.vae_scale_factor
    shape = (1, models.unet.config["in_channels"], side, side)
    return torch.cat([torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds])


def draw(
    models: Models, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling, negative_prompt: str = ""
) -> Iterator[Image.Image]:
    """Draw every prompt with every seed, prompt by prompt.

    Raises:
        ValueError: a setting does not fit the model; raised before the first image.
    """
    check_sampling(models, sampling)
    negative_embeds = encode_prompt(models, negative_prompt, sampling.clip_skip)
    return (
        image
        for prompt in prompts
        for prompt_embeds in [encode_prompt(models, prompt, sampling.clip_skip)]
        for start in range(0, len(seeds), sampling.batch_size)
        for image in sample(models, prompt_embeds, negative_embeds, seeds[start : start + sampling.batch_size], sampling)
    )


def check_sampling(models: Models, sampling: Sampling) -> None:
    """Refuse settings that do not fit the model.

    Raises:
        ValueError: it names the setting, what was given and what is allowed.
    """
    layers = models.text_encoder.config.num_hidden_layers
    if sampling.noise_scheduler not in NOISE_SCHEDULERS:
        raise ValueError(f"noise_scheduler: given {sampling.noise_scheduler!r}: choose one of {', '.join(NOISE_SCHEDULERS)}")
    if sampling.resolution % models.vae_scale_factor:
        raise ValueError(f"resolution: given {sampling.resolution}: must be a multiple of {models.vae_scale_factor}")
    if sampling.clip_skip >= layers:
        raise ValueError(f"clip_skip: given {sampling.clip_skip}: the text encoder has {layers} layers, skip fewer")


@torch.inference_mode()
def sample(
    models: Models, prompt_embeds: Tensor, negative_embeds: Tensor, seeds: Sequence[int], sampling: Sampling
) -> list[Image.Image]:
    """Draw one prompt with several seeds in one batch.

    Args:
        models: from `load_models`.
        prompt_embeds: (1, 77, D).
        negative_embeds: (1, 77, D), of the negative prompt.
        seeds: one an image.
        sampling: `batch_size` is not used here.
    """
    noise_scheduler = make_noise_scheduler(models.folder, sampling.noise_scheduler)
    noise_scheduler.set_timesteps(sampling.num_inference_steps, device=models.unet.device)
    guided = sampling.guidance_scale > 1
    encoder_hidden_states = prompt_embeds.expand(len(seeds), -1, -1)
    if guided:
        encoder_hidden_states = torch.cat([negative_embeds.expand_as(encoder_hidden_states), encoder_hidden_states])
    latents = initial_latents(models, seeds, sampling.resolution).to(models.unet.device, models.unet.dtype)
    latents = latents * noise_scheduler.init_noise_sigma
    for timestep in noise_scheduler.timesteps:
        model_input = noise_scheduler.scale_model_input(torch.cat([latents] * (1 + guided)), timestep)
        model_pred = models.unet(model_input, timestep, encoder_hidden_states, return_dict=False)[0]
        if guided:
            unconditional, conditional = model_pred.chunk(2)
            model_pred = unconditional + sampling.guidance_scale * (conditional - unconditional)
        latents = noise_scheduler.step(model_pred, timestep, latents, return_dict=False)[0]
    return decode_latents(models.vae, latents)


def make_noise_scheduler(folder: Path, name: str) -> Any:
    """The noise scheduler called `name`, with the betas and the prediction type of the checkpoint."""
    import diffusers

    return getattr(diffusers, NOISE_SCHEDULERS[name]).from_pretrained(folder, subfolder="scheduler", local_files_only=True)


@torch.inference_mode()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> list[Image.Image]:
    """Turn latents (B, C, h, w), times the VAE's scaling factor, into RGB images.

    Raises:
        ValueError: the VAE gave something that is no number, as some do in float16.
    """
    images = vae.decode(latents / vae.config["scaling_factor"], return_dict=False)[0]
    if not images.isfinite().all():
        raise ValueError(f"an image came out as NaN in {vae.dtype}; set runtime.dtype to float32 or bfloat16")
    pixels = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return [Image.fromarray(image) for image in (pixels * 255).round().astype(np.uint8)]
