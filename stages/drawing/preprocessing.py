"""Images as an encoder takes them, by Pillow and NumPy alone. Imports no torch.

The processors of transformers choose between Pillow and torchvision by what is installed, and the two resize differently; a
score must not depend on that.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CONFIG_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class Preprocessing:
    """What preprocessor_config.json says.

    Attributes:
        size: width and height in pixels that an image is resized to; or the shorter side alone.
        resample: Pillow's number of the filter.
        crop_size: width and height in pixels of the middle that is cut out; None for none.
        rescale_factor: what the bytes of an image are multiplied by.
        image_mean: of the three channels, taken off afterwards.
        image_std: of the three channels, divided by.
    """

    size: int | tuple[int, int]
    resample: int
    crop_size: tuple[int, int] | None
    rescale_factor: float
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """An image as the encoder takes it: (3, height, width) float32, about in [-2.5, 2.5]."""
        picture = image.convert("RGB")
        picture = picture.resize(self._size_of(picture), Image.Resampling(self.resample))
        if self.crop_size:
            picture = _middle(picture, self.crop_size)
        pixels = np.asarray(picture, dtype=np.float32) * np.float32(self.rescale_factor)
        mean, std = (np.array(values, dtype=np.float32) for values in (self.image_mean, self.image_std))
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))

    def _size_of(self, picture: Image.Image) -> tuple[int, int]:
        if not isinstance(self.size, int):
            return self.size
        width, height = picture.size
        if width <= height:
            return self.size, int(self.size * height / width)
        return int(self.size * width / height), self.size


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read the preprocessor_config.json of an encoder.

    Raises:
        OSError: it is missing.
        ValueError: it says something that is not done here.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing: an encoder of images needs it")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        size, crop = settings["size"], settings.get("crop_size")
        whole = Preprocessing(
            size=size if isinstance(size, int) else size["shortest_edge"] if "shortest_edge" in size else _sides(size),
            resample=settings["resample"],
            crop_size=_sides(crop) if settings.get("do_center_crop") else None,
            rescale_factor=settings.get("rescale_factor", 1 / 255),
            image_mean=tuple(settings["image_mean"]),
            image_std=tuple(settings["image_std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as the settings of an image processor ({error})") from error
    for name in ("do_resize", "do_normalize"):
        if not settings.get(name, True):
            raise ValueError(f"{path}: {name} is false: only encoders whose images are resized and normalized are supported")
    return whole


def _sides(size: int | Mapping[str, Any]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size["width"], size["height"])


def _middle(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    width, height = size
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    if min(left, top) < 0:
        raise ValueError(f"a middle of {width}x{height} pixels cannot be cut from {picture.width}x{picture.height}")
    return picture.crop((left, top, left + width, top + height))
