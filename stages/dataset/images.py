"""Decoding of pictures from unknown hands, and their one form afterwards: 8-bit RGB PNG."""

import hashlib
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageChops

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Raster formats that Pillow decodes by itself; EPS, PDF and the like would start other programs."""

DARK = 16
"""Of 255: a mask that is nowhere brighter holds the numbers of labels (0, 1), or nothing."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, for each EXIF orientation but 1."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})


class RefusedImageError(ValueError):
    """A picture that cannot be used; the message says why."""


def decode(data: bytes, min_size: int, max_pixels: int) -> tuple[Image.Image, Image.Image | None]:
    """Decode the bytes of an image file to RGB: upright by its EXIF orientation, transparency over white, first frame.

    Nothing else of the metadata matters: a picture is not refused for a wrong tag, or for long text.

    Returns:
        The picture, and its alpha channel (mode L, 255 is opaque), if any of it is transparent.

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
        upright = _upright(image)
        return _to_rgb(upright), _alpha(upright)
    except (RefusedImageError, MemoryError):
        raise
    except Exception as error:  # a decoder raises whatever its format's library does, RuntimeError for a damaged AVIF
        bare = _without_text(data)
        if bare != data:
            return decode(bare, min_size, max_pixels)
        raise RefusedImageError(f"cannot be decoded as an image ({_reason(error)})") from error


def decode_mask(data: bytes, size: tuple[int, int], max_pixels: int) -> Image.Image:
    """Decode the bytes of a mask: mode L, 255 where the picture shows the subject; what is transparent in it counts as black.

    Args:
        data: as for `decode`.
        size: of its picture; a mask of another size and the same shape is resized to it.
        max_pixels: as for `decode`.

    Raises:
        RefusedImageError: as `decode`; or its shape is another, or nothing in it is white.
    """
    picture, alpha = decode(data, 1, max_pixels)
    mask = ImageChops.multiply(picture.convert("L"), alpha) if alpha is not None else picture.convert("L")
    (width, height), (mask_width, mask_height) = size, mask.size
    if abs(width * mask_height - height * mask_width) > max(size) + max(mask.size):
        raise RefusedImageError(f"is {mask_width}x{mask_height}, and its picture {width}x{height}: give it the same shape")
    brightest = int(np.asarray(mask).max())
    if brightest < DARK:
        raise RefusedImageError(f"is black, its highest value is {brightest} of 255: the subject has to be white")
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def looks_like_image(file: bytes | Path) -> bool:
    """Whether a file, or its bytes, begins as one of `FORMATS`; the rest is not looked at."""
    try:
        _open(file).close()
    except MemoryError:
        raise
    except Exception:  # as in `decode`
        return False
    return True


def pixel_digest(image: Image.Image) -> str:
    """Digest of what an RGB image shows: its size and pixels, whatever file it came in."""
    return hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image, or a mask, as PNG with fixed settings and nothing but pixels, so that equal images give equal bytes."""
    bare = image.copy()
    bare.info.clear()
    bare.save(path, format="PNG", compress_level=6, optimize=False)


def _open(file: bytes | Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata, which does not matter, and of sizes, which _check_size refuses
        return Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)


def _without_text(data: bytes) -> bytes:
    """A PNG without its text and its colour profile, for which Pillow would refuse it where they are long or damaged.

    Pillow's limits (`PngImagePlugin.MAX_TEXT_CHUNK`) are global to the process; they stay what they are.
    """
    if not data.startswith(_PNG):
        return data
    return _PNG + b"".join(chunk for name, chunk in _png_chunks(data) if name not in _PNG_TEXT)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of each chunk: length, name, content, checksum (PNG specification, section 5.3)."""
    start = len(_PNG)
    while start < len(data):
        end = start + int.from_bytes(data[start : start + 4], "big") + 12
        yield data[start + 4 : start + 8], data[start:end]
        start = end


def _upright(image: Image.Image) -> Image.Image:
    """The picture as it is to be looked at; where its orientation cannot be read, as it is stored.

    `ImageOps.exif_transpose` would write all of EXIF anew, and fail on any tag that it cannot write.
    """
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, whatever type it is written in; 1 where there is none that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tags that are not read here
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
        value = value[0] if isinstance(value, tuple) else value
        return ord(value.strip(b"\0")) if isinstance(value, bytes) else int(value)
    except MemoryError:
        raise
    except Exception:  # as in `decode`
        return 1


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is none of " + ", ".join(FORMATS)
    return str(error) or type(error).__name__


def _check_size(image: Image.Image, min_size: int, max_pixels: int) -> None:
    if min(image.size) < min_size:
        raise RefusedImageError(f"is {image.width}x{image.height}; min_size is {min_size}")
    if image.width * image.height > max_pixels:
        raise RefusedImageError(f"is {image.width}x{image.height}; max_pixels is {max_pixels}")


def _alpha(image: Image.Image) -> Image.Image | None:
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else alpha


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise RefusedImageError(f"has pixels of mode {image.mode}; convert it to 8 bits a channel")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
