"""Pictures for tests."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def save_noise(folder: Path, *names: str) -> Path:
    """Save one distinct picture under each name."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        suffix = Path(name).suffix[1:].upper()
        kind = suffix if suffix in ("BMP", "GIF", "PNG", "WEBP") else "JPEG"
        (folder / name).write_bytes(encoded(noise(seed), kind))
    return folder
