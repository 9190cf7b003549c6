"""Images as the VAE sees them: loading, resizing, and the posterior of each image and its mirror image."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stages.encoding.buckets import Size, cover
from stages.pipeline.progress import track
from stages.pipeline.wording import counted

PIXELS_TOGETHER = 2**20
"""Pixels that a VAE is given at once at most, one image apart: four of 512 x 512, one of 1024 x 1024, for which a VAE of Stable
Diffusion's size takes about 3 GB in float32. No setting, and not what memory there is: the last bits depend on it."""


def images_together(batch_size: int, size: Size) -> int:
    """How many images of a size, (width, height), a VAE encodes or decodes at once: at least one, at most `batch_size`."""
    return max(1, min(batch_size, PIXELS_TOGETHER // (size[0] * size[1])))


def load_vae(folder: Path, device: torch.device) -> AutoencoderKL:
    """Load a VAE in float32, whatever it is stored in: in float16 some SD1 VAEs overflow (A1111#12624)."""
    vae: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    return vae.to(device).requires_grad_(False).eval()


def image_size(path: Path) -> Size:
    """Width and height of an image file, from its header."""
    with Image.open(path) as image:
        return image.size


def vae_scale_factor(vae: AutoencoderKL) -> int:
    """Pixels of the image for each pixel of the latents, along one side."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def say_sizes(sizes: Mapping[Path, Size]) -> None:
    """Print how many images get which size."""
    counts = Counter(sizes.values())
    print(
        ", ".join(f"{counted(count, 'image')} at {width}x{height}" for (width, height), count in sorted(counts.items())),
        flush=True,
    )


def load_image(path: Path, size: Size, interpolation: str) -> Tensor:
    """Load an image, resize it until it just covers `size`, and crop the middle.

    For a square the same as torchvision's Resize, CenterCrop, ToTensor and Normalize(0.5, 0.5), to the bit.

    Args:
        path: an image file.
        size: width and height of the result.
        interpolation: "lanczos", "bicubic" or "bilinear".

    Returns:
        (3, height, width) in [-1, 1].

    Raises:
        OSError: the file cannot be decoded; it is named.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise OSError(f"{path}: cannot be decoded as an image: {error}") from error
    pixels = torch.from_numpy(np.array(_covering(image, size, interpolation))).permute(2, 0, 1).float()
    return (pixels / 255 - 0.5) / 0.5


def _covering(image: Image.Image, size: Size, interpolation: str) -> Image.Image:
    """An image resized until it just covers a size, and its middle."""
    resized = cover(image.size, size)
    image = image.resize(resized, Image.Resampling[interpolation.upper()])
    left, top = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
    return image.crop((left, top, left + size[0], top + size[1]))


def load_mask(path: Path, size: Size, scale_factor: int) -> Tensor:
    """Load a mask as `load_image` does its image, and average it over what a pixel of the latents covers.

    Args:
        path: an image file of mode L, 255 where the image shows the subject.
        size: width and height of the image as it is encoded.
        scale_factor: pixels of the image for each pixel of the latents, along one side.

    Returns:
        (h, w) in [0, 1].
    """
    with Image.open(path) as file:
        mask = _covering(file.convert("L"), size, "bilinear")
    width, height = size[0] // scale_factor, size[1] // scale_factor
    blocks = np.asarray(mask, dtype=np.float32).reshape(height, scale_factor, width, scale_factor)
    return torch.from_numpy(blocks.mean(axis=(1, 3)) / 255)


def encode_masks(masks: Mapping[Path, Path | None], sizes: Mapping[Path, Size], scale_factor: int) -> Tensor | None:
    """The masks of images at the size of their latents.

    Args:
        masks: of each image; None for one that has none, which is all the subject.
        sizes: of each image as it is encoded.
        scale_factor: see `load_mask`.

    Returns:
        (N, h, w) in [0, 1], or (N, L), padded with zeros, where sizes differ; None where no image has a mask.
    """
    if not any(masks.values()):
        return None
    shapes = [(size[1] // scale_factor, size[0] // scale_factor) for size in sizes.values()]
    each = [
        torch.ones(shape) if path is None else load_mask(path, size, scale_factor)
        for shape, path, size in zip(shapes, masks.values(), sizes.values(), strict=True)
    ]
    if len(set(shapes)) == 1:
        return torch.stack(each)
    return pad_sequence([mask.flatten() for mask in each], batch_first=True)


@torch.inference_mode()
def encode_images(
    vae: AutoencoderKL, paths: Iterable[Path], size: Size, interpolation: str, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Encode images and their mirror images.

    Args:
        vae: from `load_vae`.
        paths: image files; those of a batch are taken when it is their turn.
        size: see `load_image`.
        interpolation: see `load_image`.
        batch_size: images that are encoded together, if they are not too large for that (`images_together`). The last bits of
            the result depend on it.

    Returns:
        mean: (N, 2, C, h, w), of the posterior, not times the scaling factor.
        std: the same shape.

    Raises:
        ValueError: the VAE made NaN or infinity of an image; it is named.
    """
    means, stds = [], []
    waiting = iter(paths)
    while chunk := list(islice(waiting, images_together(batch_size, size))):
        images = torch.stack([load_image(path, size, interpolation) for path in chunk]).to(vae.device)
        posteriors = [vae.encode(view, return_dict=False)[0] for view in (images, images.flip(3))]
        means.append(torch.stack([posterior.mean for posterior in posteriors], dim=1).cpu())
        stds.append(torch.stack([posterior.std for posterior in posteriors], dim=1).cpu())
        _check_finite(chunk, means[-1], stds[-1])
    return torch.cat(means), torch.cat(stds)


def encode_mixed(
    vae: AutoencoderKL, sizes: Mapping[Path, Size], interpolation: str, batch_size: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Encode images of several sizes, each batch of one size.

    Args:
        vae: from `load_vae`.
        sizes: of each image.
        interpolation: see `load_image`.
        batch_size: see `encode_images`.

    Returns:
        mean and std as `encode_images` gives them, and None, where all sizes are the same. Otherwise mean and std are
        (N, 2, C, L), where h and w are made one dimension and padded with zeros, and then shapes (N, 2) with each h and w.
    """
    groups: dict[Size, list[int]] = {}
    for number, size in enumerate(sizes.values()):
        groups.setdefault(size, []).append(number)
    paths = list(sizes)
    ordered = [paths[number] for numbers in groups.values() for number in numbers]
    with closing(track(ordered, "images encoded")) as waiting:
        encoded = {
            size: encode_images(vae, islice(waiting, len(numbers)), size, interpolation, batch_size)
            for size, numbers in groups.items()
        }
        next(waiting, None)  # so that it says it is done
    if len(groups) == 1:
        (only,) = encoded.values()
        return *only, None
    channels = vae.config["latent_channels"]
    length = max(mean.shape[3] * mean.shape[4] for mean, _ in encoded.values())
    parts = torch.zeros(2, len(paths), 2, channels, length)
    shapes = torch.zeros(len(paths), 2, dtype=torch.int64)
    for size, numbers in groups.items():
        shapes[numbers] = torch.tensor(encoded[size][0].shape[3:])
        for part, tensor in zip(parts, encoded[size], strict=True):
            flat = tensor.flatten(3)
            part[numbers, ..., : flat.shape[3]] = flat
    return parts[0], parts[1], shapes


def _check_finite(paths: Sequence[Path], mean: Tensor, std: Tensor) -> None:
    """Raise a ValueError that names the first image whose posterior is not finite."""
    finite = (mean.isfinite() & std.isfinite()).flatten(1).all(dim=1)
    for path, good in zip(paths, finite.tolist(), strict=True):
        if not good:
            raise ValueError(f"{path}: the VAE makes NaN of it; its weights are broken, or overflowed when they were converted")
