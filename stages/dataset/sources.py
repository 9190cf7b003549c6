"""Candidates for a dataset: images that a source offers, not yet read."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stages.dataset.images import RefusedImageError, list_images
from stages.dataset.metadata import MANIFEST, read_table


@dataclass(frozen=True)
class Candidate:
    """An image that a source offers.

    Attributes:
        name: what messages call it.
        source: its address, or its path in the source; never a path of this machine.
        licence: what the source says of it; empty where it says nothing.
        sha256: digest that its bytes must have; None where the source does not pin them.
        load: gives its bytes; raises OSError or `RefusedImageError`.
    """

    name: str
    source: str
    licence: str
    sha256: str | None
    load: Callable[[], bytes]

    def read(self) -> bytes:
        """Its bytes, checked against the digest.

        Raises:
            RefusedImageError: the bytes are not the ones that the source pins, or cannot be had.
        """
        try:
            data = self.load()
        except OSError as error:
            raise RefusedImageError(f"cannot be read ({error})") from error
        found = hashlib.sha256(data).hexdigest()
        if self.sha256 not in (None, found):
            raise RefusedImageError(f"has sha256 {found}, but {self.sha256} is expected: it was changed since")
        return data


def folder_candidates(folder: Path) -> list[Candidate]:
    """The images of a local folder and its subfolders, in the order of their paths.

    A manifest.csv in the folder, with the columns file_name (path in the folder), source, licence and, where wanted, sha256
    (digest of the file), says where they come from; without one the path is the source and the licence is unknown.

    Args:
        folder: its images are found by their suffixes; other files are left alone.

    Raises:
        ValueError: the folder is not there or holds no image, or the manifest and the folder differ.
    """
    if not folder.is_dir():
        raise ValueError(f"no such folder: {folder}")
    files = {path.relative_to(folder).as_posix(): path for path in list_images(folder)}
    if not files:
        raise ValueError(f"{folder} holds no image: put .png, .jpg or .webp files there")
    if (folder / MANIFEST).exists():
        return list(_with_manifest(files, folder / MANIFEST))
    return [Candidate(str(path), f"{folder.name}/{name}", "", None, path.read_bytes) for name, path in files.items()]


def _with_manifest(files: dict[str, Path], manifest: Path) -> Iterator[Candidate]:
    rows = {row["file_name"]: row for row in read_table(manifest, ("file_name", "source", "licence"))}
    strangers = sorted(files.keys() ^ rows.keys())
    if strangers:
        problem = "has no row for" if strangers[0] in files else "names a file that is not there:"
        raise ValueError(f"{manifest} {problem} {strangers[0]}; add the row, or remove the file or the row")
    for name, path in files.items():
        row = rows[name]
        yield Candidate(str(path), row["source"], row["licence"], row.get("sha256") or None, path.read_bytes)
