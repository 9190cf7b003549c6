"""The pictures of the page: beside it as thumbnails and originals, or in the page itself."""

import base64
import io
import os
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

THUMBNAIL_SIZE = 256
"""Pixels of the longest side of a picture in the page; a larger one is reduced, and compressed with some loss."""
THUMBNAILS = "thumbnails"


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        shown: the address of what the page shows.
        original: the address of the file itself; None where it does not lie beside the page.
        width: of what is shown, in pixels.
        height: likewise.
    """

    shown: str
    original: str | None
    width: int
    height: int


class PageFiles:
    """Gives each picture its address, and writes what the addresses stand for."""

    def __init__(self, roots: Mapping[Path, str], originals: Collection[Path], single_file: bool) -> None:
        """See the class.

        Args:
            roots: the folders that pictures come from, and what they are called beside the page.
            originals: those of them whose files lie beside the page as they are; of the others it has thumbnails alone.
            single_file: whether the pictures are put into the page, and none lies beside it.
        """
        self._roots = roots
        self._originals = originals
        self._single_file = single_file
        self._pictures: dict[Path, Picture] = {}
        self._places: dict[Path, tuple[str, str | None]] = {}

    def picture(self, file: Path) -> Picture:
        """The picture in a file, which is below one of the roots."""
        if file not in self._pictures:
            self._pictures[file] = self._embedded(file) if self._single_file else self._beside(file)
        return self._pictures[file]

    def write(self, folder: Path) -> None:
        """Write the originals and the thumbnails that were asked for, beside the page in this folder."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda file: self._write(file, folder), self._places))

    def _beside(self, file: Path) -> Picture:
        root = next(root for root in self._roots if file.is_relative_to(root))
        width, height, small = _size(file)
        place = f"{self._roots[root]}/{file.relative_to(root).as_posix()}"
        shown = place if small else f"{THUMBNAILS}/{place}.webp"
        original = place if small or root in self._originals else None
        self._places[file] = shown, original
        return Picture(quote(shown), original and quote(original), width, height)

    def _embedded(self, file: Path) -> Picture:
        width, height, small = _size(file)
        kind, content = ("png", file.read_bytes()) if small else ("webp", thumbnail(file))
        return Picture(data_uri(kind, content), None, width, height)

    def _write(self, file: Path, folder: Path) -> None:
        shown, original = self._places[file]
        for place in {shown, original} - {None}:
            out = folder / str(place)
            out.parent.mkdir(parents=True, exist_ok=True)
            if place == original:
                shutil.copyfile(file, out)
            else:
                out.write_bytes(thumbnail(file))


def data_uri(kind: str, content: bytes) -> str:
    """A picture in an address; `kind` is that of its file, such as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(file: Path) -> bytes:
    """A picture as WebP of at most `THUMBNAIL_SIZE` pixels a side; the same picture gives the same bytes."""
    with Image.open(file) as image:
        picture = image.convert("RGB")
    picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=88, method=4)
    return buffer.getvalue()


def _size(file: Path) -> tuple[int, int, bool]:
    """Width and height in the page, and whether the file is shown as it is."""
    with Image.open(file) as image:
        (width, height), kind = image.size, image.format
    scale = THUMBNAIL_SIZE / max(width, height)
    if scale >= 1:
        return width, height, kind == "PNG"
    return max(1, round(width * scale)), max(1, round(height * scale)), False
