"""PNG files with text in them, that any image viewer shows."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def write_png(image: Image.Image, path: Path, text: Mapping[str, str]) -> None:
    """Write a PNG with text chunks; the same picture and text always give the same bytes."""
    chunks = PngInfo()
    for key in sorted(text):
        chunks.add_text(key, text[key])
    image.save(path, "PNG", pnginfo=chunks, optimize=False, compress_level=6)


def read_png_text(path: Path) -> dict[str, str]:
    """Text chunks of a PNG."""
    with Image.open(path) as image:
        image.load()
        return {key: str(value) for key, value in getattr(image, "text", {}).items()}
