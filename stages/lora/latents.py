"""Images as the VAE sees them: loading, resizing, and the posterior of each image and its mirror image."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor


def load_vae(folder: Path, device: torch.device) -> AutoencoderKL:
    """Load a VAE in float32, whatever it is stored in: in float16 some SD1 VAEs overflow (A1111#12624)."""
    vae: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    return vae.to(device).requires_grad_(False).eval()


def warn_of_small_images(paths: Iterable[Path], resolution: int) -> None:
    """Name on stderr the images that will be enlarged, which blurs them."""
    for path in paths:
        with Image.open(path) as image:
            if min(image.size) < resolution:
                print(f"warning: {path.name}: {image.width}x{image.height} is enlarged to {resolution}", file=sys.stderr)


def load_image(path: Path, resolution: int, interpolation: str) -> Tensor:
    """Load an image, resize its shorter side to `resolution` and crop the middle.

    The same as torchvision's Resize, CenterCrop, ToTensor and Normalize(0.5, 0.5), to the bit.

    Args:
        path: an image file.
        resolution: pixels of one side of the result.
        interpolation: "lanczos", "bicubic" or "bilinear".

    Returns:
        (3, resolution, resolution) in [-1, 1].

    Raises:
        OSError: the file cannot be decoded; it is named.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise OSError(f"{path}: cannot be decoded as an image: {error}") from error
    shorter = min(image.size)
    size = (int(resolution * image.width / shorter), int(resolution * image.height / shorter))
    image = image.resize(size, Image.Resampling[interpolation.upper()])
    left, top = round((size[0] - resolution) / 2), round((size[1] - resolution) / 2)
    image = image.crop((left, top, left + resolution, top + resolution))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    return (pixels / 255 - 0.5) / 0.5


@torch.inference_mode()
def encode_images(
    vae: AutoencoderKL, paths: Iterable[Path], resolution: int, interpolation: str, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Encode images and their mirror images.

    Args:
        vae: from `load_vae`.
        paths: image files.
        resolution: see `load_image`.
        interpolation: see `load_image`.
        batch_size: images that are encoded together. The last bits of the result depend on it.

    Returns:
        mean: (N, 2, C, h, w), of the posterior, not times the scaling factor.
        std: the same shape.

    Raises:
        ValueError: the VAE made NaN or infinity of an image; it is named.
    """
    paths = list(paths)
    means, stds = [], []
    for start in range(0, len(paths), batch_size):
        chunk = paths[start : start + batch_size]
        images = torch.stack([load_image(path, resolution, interpolation) for path in chunk]).to(vae.device)
        posteriors = [vae.encode(view, return_dict=False)[0] for view in (images, images.flip(3))]
        means.append(torch.stack([posterior.mean for posterior in posteriors], dim=1).cpu())
        stds.append(torch.stack([posterior.std for posterior in posteriors], dim=1).cpu())
        _check_finite(chunk, means[-1], stds[-1])
    return torch.cat(means), torch.cat(stds)


def _check_finite(paths: Sequence[Path], mean: Tensor, std: Tensor) -> None:
    """Raise a ValueError that names the first image whose posterior is not finite."""
    finite = (mean.isfinite() & std.isfinite()).flatten(1).all(dim=1)
    for path, good in zip(paths, finite.tolist(), strict=True):
        if not good:
            raise ValueError(f"{path}: the VAE makes NaN of it; its weights are broken, or overflowed when they were converted")
