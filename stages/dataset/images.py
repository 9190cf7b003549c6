"""Decoding of pictures from unknown hands, and their one form afterwards: 8-bit RGB PNG."""

import hashlib
import struct
import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Raster formats that Pillow decodes by itself; EPS, PDF and the like would start other programs."""

_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


class RefusedImageError(ValueError):
    """A picture that cannot be used; the message says why."""


def decode(data: bytes, min_size: int, max_pixels: int) -> Image.Image:
    """Decode the bytes of an image file to RGB: upright by its EXIF orientation, transparency over white, first frame.

    Args:
        data: a whole file of one of `FORMATS`.
        min_size: least length of the shorter side, in pixels.
        max_pixels: most pixels; checked before decoding, so that a decompression bomb costs nothing.

    Raises:
        RefusedImageError: broken, cut off, too small, too large, or of a kind that has no 8-bit form.
    """
    try:
        _open(data).verify()
        image = _open(data)  # verify() leaves its image unusable
        _check_size(image, min_size, max_pixels)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except RefusedImageError:
        raise
    except _DECODER_ERRORS as error:
        raise RefusedImageError(f"cannot be decoded as an image ({_reason(error)})") from error


def looks_like_image(data: bytes) -> bool:
    """Whether the bytes begin as a file of one of `FORMATS`; the rest is not looked at."""
    try:
        _open(data)
    except _DECODER_ERRORS:
        return False
    return True


def pixel_digest(image: Image.Image) -> str:
    """Digest of what an RGB image shows: its size and pixels, whatever file it came in."""
    return hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image as PNG with fixed settings and nothing but pixels, so that equal images give equal bytes."""
    bare = image.copy()
    bare.info.clear()
    bare.save(path, format="PNG", compress_level=6, optimize=False)


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, in the order of their paths; hidden ones are left out."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    visible = (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(visible, key=lambda path: path.relative_to(folder).as_posix())


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_size refuses what it warns of
        return Image.open(BytesIO(data), formats=FORMATS)


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is none of " + ", ".join(FORMATS)
    return str(error) or type(error).__name__


def _check_size(image: Image.Image, min_size: int, max_pixels: int) -> None:
    if min(image.size) < min_size:
        raise RefusedImageError(f"is {image.width}x{image.height}; min_size is {min_size}")
    if image.width * image.height > max_pixels:
        raise RefusedImageError(f"is {image.width}x{image.height}; max_pixels is {max_pixels}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise RefusedImageError(f"has pixels of mode {image.mode}; convert it to 8 bits a channel")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
