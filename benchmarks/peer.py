"""The five image transforms that diffusers' example scripts take from torchvision, with the same pixels.

The scripts use torchvision for nothing else, and its wheels do not fit every build of torch. Where it is installed and fits,
the scripts have the real ones.
"""

import enum
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

Transform = Callable[[Any], Any]


class InterpolationMode(enum.Enum):
    """The resampling filters that the scripts can name."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


def resize(size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> Transform:
    """Bring the shorter side to `size`."""

    def transform(image: Image.Image) -> Image.Image:
        shorter = min(image.size)
        sides = (int(size * image.width / shorter), int(size * image.height / shorter))
        return image.resize(sides, Image.Resampling[interpolation.name])

    return transform


def center_crop(size: int) -> Transform:
    """Cut out the middle."""

    def transform(image: Image.Image) -> Image.Image:
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        return image.crop((left, top, left + size, top + size))

    return transform


def random_horizontal_flip(p: float = 0.5) -> Transform:
    """Mirror a share of the images."""
    return lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(()) < p else image


def to_tensor() -> Transform:
    """Channels first, in [0, 1]."""
    return lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def normalize(mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Subtract and divide."""
    return lambda tensor: (tensor - mean[0]) / std[0]


def compose(transforms: Sequence[Transform]) -> Transform:
    """One after the other."""

    def transform(image: Any) -> Any:
        for each in transforms:
            image = each(image)
        return image

    return transform


def provide_transforms() -> None:
    """Put the transforms where `from torchvision import transforms` finds them, unless it finds the real ones."""
    try:
        import torchvision.transforms  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError):  # it is not there, or was built for another torch
        sys.modules.pop("torchvision", None)
    else:
        return
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import diffusers  # noqa: F401
    import peft  # noqa: F401
    import transformers

    transformers.utils.import_utils.is_torchvision_available()
    torchvision: Any = types.ModuleType("torchvision")
    torchvision.transforms = types.SimpleNamespace(
        InterpolationMode=InterpolationMode,
        Resize=resize,
        CenterCrop=center_crop,
        RandomHorizontalFlip=random_horizontal_flip,
        Lambda=lambda function: function,
        ToTensor=to_tensor,
        Normalize=normalize,
        Compose=compose,
    )
    sys.modules["torchvision"] = torchvision
