"""Candidates for a dataset: images that a source offers, not yet read."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from stages.dataset.config import FolderSource
from stages.dataset.file_paths import printable
from stages.dataset.folders import list_images, visible_files
from stages.dataset.images import RefusedImageError
from stages.dataset.masks import find_masks, without_masks
from stages.dataset.metadata import MANIFEST
from stages.dataset.own_captions import NO_SET, ImageSet, image_sets, own_captions, tidy
from stages.pipeline.tables import read_table


@dataclass(frozen=True)
class Candidate:
    """An image that a source offers.

    Attributes:
        name: what messages call it.
        source: its address, or its path in the source; never a path of this machine.
        licence: what the source says of it; empty where it says nothing.
        sha256: digest that its bytes must have; None where the source does not pin them.
        load: gives its bytes; raises OSError or `RefusedImageError`.
        caption: what the source says that it shows; empty where it says nothing.
        image_set: that it belongs to.
        mask: gives the bytes of its mask, as `load` does; None where it has none.
    """

    name: str
    source: str
    licence: str
    sha256: str | None
    load: Callable[[], bytes]
    caption: str = ""
    image_set: ImageSet = NO_SET
    mask: Callable[[], bytes] | None = None

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


def folder_candidates(source: FolderSource) -> list[Candidate]:
    """The images of a local folder and its subfolders with their own captions and masks, in the order of their paths.

    A manifest.csv in the folder, with the columns file_name (path in the folder), source, licence and, where wanted, sha256
    (digest of the file) and caption, says where they come from; without one the path is the source and the licence unknown.

    Args:
        source: see `visible_files`, `list_images`, `own_captions`, `image_sets` and `find_masks` for what counts in its folder.

    Raises:
        ValueError: the folder holds no image, or the manifest and the folder differ, or no mask is one of an image.
        OSError: a subfolder cannot be read.
    """
    folder = source.path
    files = visible_files(folder)
    images, masks = list_images(files), {}
    if source.masks is not None:
        images = without_masks(images, source.masks)
        masks = find_masks(images, source.masks)
    if not images:
        raise ValueError(f"{folder} holds no image: put .png, .jpg or .webp files there")
    captions = own_captions(files, images.keys(), folder.name)
    found = _with_manifest(images, folder / MANIFEST, captions) if (folder / MANIFEST).exists() else None
    candidates = found or {
        name: Candidate(
            printable(str(path)), printable(f"{folder.name}/{name}"), "", None, path.read_bytes, captions.get(name, "")
        )
        for name, path in images.items()
    }
    sets = image_sets(images, folder.name)
    return [
        replace(each, image_set=sets[name], mask=masks[name].read_bytes if name in masks else None)
        for name, each in candidates.items()
    ]


def _with_manifest(files: Mapping[str, Path], manifest: Path, captions: Mapping[str, str]) -> dict[str, Candidate]:
    rows = {row["file_name"]: row for row in read_table(manifest, ("file_name", "source", "licence"))}
    names = {printable(name): name for name in files}
    strangers = sorted(names.keys() ^ rows.keys())
    if strangers:
        problem = "has no row for" if strangers[0] in names else "names a file that is not there:"
        raise ValueError(f"{manifest} {problem} {strangers[0]}; add the row, or remove the file or the row")
    candidates = {}
    for shown, name in names.items():
        row, path = rows[shown], files[name]
        digest = row.get("sha256") or None
        caption = captions.get(name) or tidy(row.get("caption", ""))
        candidates[name] = Candidate(printable(str(path)), row["source"], row["licence"], digest, path.read_bytes, caption)
    return candidates
