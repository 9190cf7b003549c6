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

from stages.mini.drawings.draw_sets import read_array
from stages.mini.drawings.pixels import to_tensor
from stages.mini.evaluation.reconstruction import psnr, reconstruct
from stages.mini.training.fitting import (
    Plan,
    arguments_of,
    autocast,
    begin,
    budget_of,
    fit,
    forget,
    generator_of,
    is_first,
    processes,
    quicken,
)
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


def build(channels: Sequence[int]) -> AutoencoderKL:
    """A VAE with a block for each of `channels`, its width; every block but the first halves the sides."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=tuple(channels),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * len(channels),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * len(channels),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
    )


def reconstruction_loss(model: AutoencoderKL, images: Tensor, noise_generator: torch.Generator) -> Tensor:
    """L1 of the pixels, plus L1 of the differences between neighbouring pixels (for sharp lines), plus a small KL term.

    images: (B, 3, H, W) in [-1, 1].
    """
    posterior = model.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=noise_generator).to(images.device)
    error = model.decode(posterior.mean + posterior.std * noise).sample - images
    gradients = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + GRADIENT_WEIGHT * gradients + KL_WEIGHT * posterior.kl().mean()


@torch.no_grad()
def narrow_posterior(vae: AutoencoderKL) -> None:
    """Give every latent distribution a standard deviation of nearly 0, as Stable Diffusion's VAE has it.

    The UNet is trained on the means of these distributions. In channels that the decoder does not use, the KL term drives the
    standard deviation to 1: a latent that is sampled, as the pipeline samples it, would hold noise that the UNet never saw.
    """
    quant_conv: Any = vae.quant_conv
    quant_conv.weight[vae.config["latent_channels"] :] = 0
    quant_conv.bias[vae.config["latent_channels"] :] = NARROW_LOGVAR


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, images: NDArray[np.uint8], device: torch.device) -> float:
    """The scaling_factor of the VAE: 1 / the standard deviation of the latents of images (N, H, W, 3)."""
    return 1 / vae.encode(to_tensor(images).to(device)).latent_dist.mean.std().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and save."""
    parser = arguments_of("python -m stages.mini.training.train_vae", __doc__, MINUTES)
    options = parser.parse_args(arguments)
    device = begin(options)
    images = _training_images(options.work)
    vae = build(TINY_CHANNELS if options.tiny else CHANNELS)
    vae.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportArgumentType]
    vae.set_attn_processor(AttnProcessor())
    quicken(vae)
    plan = _plan(options)
    steps = fit(vae, lambda step: _loss(vae, images, step, options), plan)
    vae.eval()
    if is_first():
        _report(vae, images, steps, options, device)
        forget(plan.checkpoint)


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        label="training vae",
        budget=budget_of(options, MINUTES),
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        ema_decay=0.998,
        checkpoint=options.work / "vae.pt",
    )


def _training_images(work: Path) -> NDArray[np.uint8]:
    paths = sorted((work / "drawings").glob("train-*.npy"))
    if not paths:
        raise FileNotFoundError(f"{work / 'drawings'} holds no train-*.npy: run python -m stages.mini.drawings.draw_sets first")
    return np.concatenate([read_array(path)[0] for path in paths])


def _loss(vae: AutoencoderKL, images: NDArray[np.uint8], step: int, options: argparse.Namespace) -> Tensor:
    generator = generator_of(1, step)
    chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator).numpy()
    batch = images[chosen]
    # Half the batches are mirrored: the pipeline encodes mirror images too.
    batch = batch[:, :, ::-1] if step % 2 else batch
    with autocast(options):
        return reconstruction_loss(vae, to_tensor(batch).to(options.device), generator)


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
    with atomic_directory(options.work / "vae") as folder:
        vae.cpu().save_pretrained(folder)
    (options.work / "vae.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
