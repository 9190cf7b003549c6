"""Defects of generated images, imitated on drawings, so that the judge reads a smudged image as it reads a clean one."""

import io
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from stages.mini.drawings.pixels import to_bytes, to_tensor


def with_defects(images: Tensor) -> Tensor:
    """Mirror, shift, blur, smooth, tint and compress at random, each image in its own way; images: (B, 3, H, W) in [-1, 1]."""
    images = _for_some(moved(images), 0.4, _blurred)
    images = _for_some(images, 0.4, _smoothed)
    images = _for_some(images, 0.4, _blotched)
    images = _for_some(images, 0.4, _noisy)
    images = images * (1 + 0.06 * torch.randn(len(images), 1, 1, 1)) + 0.05 * torch.randn(len(images), 3, 1, 1)
    return _for_some(images, 0.15, _compressed).clamp(-1, 1)


def moved(images: Tensor) -> Tensor:
    """Mirror half of the images and shift each by a few pixels."""
    return _shifted(_for_some(images, 0.5, lambda chosen: chosen.flip(3)))


def _for_some(images: Tensor, chance: float, defect: Callable[[Tensor], Tensor]) -> Tensor:
    chosen = torch.nonzero(torch.rand(len(images)) < chance).flatten()
    return images.index_copy(0, chosen, defect(images[chosen])) if len(chosen) else images


def _strength(images: Tensor) -> Tensor:
    return torch.rand(len(images), 1, 1, 1)


def _shifted(images: Tensor, reach: int = 4) -> Tensor:
    """Move by up to `reach` pixels; the border repeats."""
    count, _, height, width = images.shape
    rows = (torch.arange(height) + torch.randint(-reach, reach + 1, (count, 1))).clamp(0, height - 1)
    columns = (torch.arange(width) + torch.randint(-reach, reach + 1, (count, 1))).clamp(0, width - 1)
    moved = images.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def _blurred(images: Tensor) -> Tensor:
    """Go some way towards a binomial 5 x 5 blur."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (row[:, None] * row).expand(3, 1, 5, 5).contiguous()
    blur = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    return images + _strength(images) * (blur - images)


def _smoothed(images: Tensor) -> Tensor:
    """Make the images smaller and large again, which loses detail as a VAE does."""
    size = int(torch.randint(images.shape[2] // 2, images.shape[2] * 3 // 4 + 1, ()))
    small = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return F.interpolate(small, size=images.shape[2:], mode="bicubic")


def _blotched(images: Tensor) -> Tensor:
    """Add noise of a quarter of the resolution, that of latents, scaled up."""
    coarse = torch.randn(len(images), 3, images.shape[2] // 4, images.shape[3] // 4)
    return images + 0.12 * _strength(images) * F.interpolate(coarse, size=images.shape[2:], mode="bilinear")


def _noisy(images: Tensor) -> Tensor:
    grain = _grain(*images.shape[1:])[torch.randint(0, 64, (len(images),))]
    return images + 0.12 * _strength(images) * grain


@lru_cache(maxsize=2)
def _grain(channels: int, height: int, width: int) -> Tensor:
    """Noise drawn once: drawing it anew costs more than all other defects."""
    return torch.randn(64, channels, height, width, generator=torch.Generator().manual_seed(0))


def _compressed(images: Tensor) -> Tensor:
    """JPEG at quality 40 to 90."""
    decoded = []
    for picture in to_bytes(images):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=int(torch.randint(40, 91, ())))
        decoded.append(np.asarray(Image.open(file).convert("RGB")))
    return to_tensor(np.stack(decoded))
