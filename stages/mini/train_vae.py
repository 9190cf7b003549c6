"""Train the VAE: 64 px drawings to 16 x 16 latents and back.

Reads <work>/drawings. Writes <work>/vae in diffusers layout, with scaling_factor set to 1 / the latents' standard deviation,
and <work>/vae.json with the PSNR on held-out drawings of each style. Run again to resume.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor

from stages.mini.draw_sets import read_array
from stages.mini.fitting import Plan, arguments_of, autocast, begin, budget_of, fit, generator_of, is_first, processes, quicken
from stages.pipeline.outputs import atomic_directory

MINUTES = 22.0
BATCH_SIZE = 8
LEARNING_RATE = 4e-3
GRADIENT_WEIGHT = 0.5
KL_WEIGHT = 1e-5
NARROW_LOGVAR = -20.0
CHANNELS = (16, 32, 64)
TINY_CHANNELS = (8, 16, 16)
LATENT_CHANNELS = 8


def build(channels: Sequence[int], latent_channels: int) -> AutoencoderKL:
    """A VAE that halves the size once for every block but the first."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=tuple(channels),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * len(channels),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * len(channels),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
    )


def to_tensor(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 images (B, H, W, 3) to floats (B, 3, H, W) in [-1, 1], channels last."""
    pixels = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def reconstruction_loss(model: AutoencoderKL, images: Tensor, noise_generator: torch.Generator) -> Tensor:
    """L1, plus L1 of horizontal and vertical differences (which keeps lines sharp), plus a small KL term."""
    posterior = model.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=noise_generator).to(images.device)
    error = model.decode(posterior.mean + posterior.std * noise).sample - images
    gradients = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + GRADIENT_WEIGHT * gradients + KL_WEIGHT * posterior.kl().mean()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.uint8]:
    """Images (N, H, W, 3) through the VAE and back, as a viewer would get them."""
    batches = []
    for first in range(0, len(images), 32):
        decoded = vae.decode(vae.encode(to_tensor(images[first : first + 32], device)).latent_dist.mean).sample
        pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        batches.append(pixels.permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(batches)


def psnr(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB, the mean over the images; higher is better."""
    squared = ((images.astype(np.float64) - others) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(squared, 1e-9))))


@torch.no_grad()
def narrow_posterior(vae: AutoencoderKL) -> None:
    """Give every posterior a standard deviation of almost nothing, as Stable Diffusion's VAE has it.

    The denoisers of the small world are trained on posterior means. A posterior as wide as its prior, which the KL term
    leaves in the channels that the decoder does not use, would be noise that they have never seen.
    """
    quant_conv: Any = vae.quant_conv
    quant_conv.weight[vae.config["latent_channels"] :] = 0
    quant_conv.bias[vae.config["latent_channels"] :] = NARROW_LOGVAR


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, images: NDArray[np.uint8], device: torch.device) -> float:
    """One over the standard deviation of the latents of these images."""
    return 1 / vae.encode(to_tensor(images, device)).latent_dist.mean.std().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and save."""
    parser = arguments_of("python -m stages.mini.train_vae", __doc__, MINUTES)
    parser.add_argument("--channels", type=int, nargs="+", default=None, help=f"width of each block ({CHANNELS})")
    parser.add_argument("--latent-channels", type=int, default=LATENT_CHANNELS)
    parser.add_argument("--name", default="vae", help="name of the results in --work")
    options = parser.parse_args(arguments)
    device = begin(options)
    images = _training_images(options.work)
    vae = build(options.channels or (TINY_CHANNELS if options.tiny else CHANNELS), options.latent_channels)
    vae.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportArgumentType]
    vae.set_attn_processor(AttnProcessor())
    quicken(vae)
    steps = fit(vae, lambda step: _loss(vae, images, step, options), _plan(options))
    vae.eval()
    if is_first():
        _report(vae, images, steps, options, device)


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        label=f"training {options.name}",
        budget=budget_of(options, MINUTES),
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        ema_decay=0.998,
        checkpoint=options.work / f"{options.name}.pt",
    )


def _training_images(work: Path) -> NDArray[np.uint8]:
    paths = sorted((work / "drawings").glob("train-*.npy"))
    if not paths:
        raise FileNotFoundError(f"{work / 'drawings'} holds no train-*.npy: run python -m stages.mini.draw_sets first")
    return np.concatenate([read_array(path)[0] for path in paths])


def _loss(vae: AutoencoderKL, images: NDArray[np.uint8], step: int, options: argparse.Namespace) -> Tensor:
    generator = generator_of(1, step)
    chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator).numpy()
    batch = images[chosen]
    # Half the batches are mirrored: the pipeline encodes mirror images too.
    batch = batch[:, :, ::-1] if step % 2 else batch
    with autocast(options):
        return reconstruction_loss(vae, to_tensor(batch, torch.device(options.device)), generator)


def _report(
    vae: AutoencoderKL, images: NDArray[np.uint8], steps: int, options: argparse.Namespace, device: torch.device
) -> None:
    narrow_posterior(vae)
    sample = images[:: max(1, len(images) // 512)]
    vae.register_to_config(scaling_factor=round(latent_scale(vae, sample, device), 5))
    figures: dict[str, Any] = {"steps": steps, "images": steps * BATCH_SIZE * processes(), "psnr": {}}
    for path in sorted((options.work / "drawings").glob("held-out-*.npy")):
        held_out = read_array(path)[0][:200]
        style = path.stem.removeprefix("held-out-")
        figures["psnr"][style] = round(psnr(held_out, reconstruct(vae, held_out, device)), 2)
    with atomic_directory(options.work / options.name) as folder:
        vae.cpu().save_pretrained(folder)
    (options.work / f"{options.name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
