"""Pictures as bytes, as files and as the tensors that models take."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stages.mini.drawings.portraits import SIZE


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Bytes (N, H, W, 3) to floats (N, 3, H, W) in [-1, 1], in the channels-last memory format."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Floats (N, 3, H, W) to bytes (N, H, W, 3), rounded; what lies outside [-1, 1] is cut off."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def read_images(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Read pictures as bytes (N, 64, 64, 3); one of another size is box-filtered to it.

    Raises:
        ValueError: there are none.
    """
    if not paths:
        raise ValueError("there is no picture to judge")
    pictures = [Image.open(path).convert("RGB") for path in paths]
    return np.stack(
        [np.asarray(p if p.size == (SIZE, SIZE) else p.resize((SIZE, SIZE), Image.Resampling.BOX)) for p in pictures]
    )
