"""What the VAE keeps of drawings."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from stages.mini.drawings.pixels import to_bytes, to_tensor


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.uint8]:
    """Encode images (N, H, W, 3) to the means of their latents, and decode these to bytes again."""
    batches = []
    for first in range(0, len(images), 32):
        latents = vae.encode(to_tensor(images[first : first + 32]).to(device)).latent_dist.mean
        batches.append(to_bytes(vae.decode(latents).sample))
    return np.concatenate(batches)


def psnr(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB, the mean over the images; higher is better."""
    squared = ((images.astype(np.float64) - others) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(squared, 1e-9))))
