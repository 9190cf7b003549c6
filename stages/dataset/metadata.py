"""The tables that travel with images: manifest.csv (where they come from), skipped.csv, and metadata.csv (what they show)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from stages.pipeline.tables import read_table, write_table

MANIFEST = "manifest.csv"
METADATA = "metadata.csv"
METADATA_COLUMNS = ("file_name", "caption")
SKIPPED = "skipped.csv"
"""What was found and not taken, with the reason, beside the manifest."""
SKIPPED_COLUMNS = ("name", "why")
MASKS = "masks"
"""The folder of the masks beside the images: mode L, 255 where an image shows the subject, under the image's name."""

Split = Literal["train", "test"]
TRAIN: Split = "train"
TEST: Split = "test"
"""The splits of a dataset, by the names that `datasets` knows; those of `test` are held out from every training."""


@dataclass(frozen=True)
class ManifestRow:
    """Where one image comes from.

    Attributes:
        file_name: of the image beside the manifest.
        source: address or path it was read from.
        source_sha256: digest of the bytes received from there.
        sha256: digest of the image file beside the manifest.
        licence: what the source says; empty where it says nothing.
        width: pixels.
        height: pixels.
        split: whether it is trained on, or held out.
        caption: what the source says that it shows; empty where it says nothing.
        mask_sha256: digest of its mask's file in `MASKS`; empty where it has none.
        image_set: the name of the set that it belongs to; empty where it belongs to none.
        repeats: how often an epoch shows it.
    """

    file_name: str
    source: str
    source_sha256: str
    sha256: str
    licence: str
    width: int
    height: int
    split: Split = TRAIN
    caption: str = ""
    mask_sha256: str = ""
    image_set: str = ""
    repeats: int = 1


OPTIONAL = {"caption": "", "mask_sha256": "", "image_set": "", "repeats": 1}
"""Columns of the manifest that it has only where an image has something else there than this."""


def write_manifest(folder: Path, rows: Sequence[ManifestRow]) -> None:
    """Write manifest.csv into a folder of images; it has those columns of `OPTIONAL` in which any image has something."""
    used = {name for name, empty in OPTIONAL.items() if any(getattr(row, name) != empty for row in rows)}
    columns = [field.name for field in fields(ManifestRow) if field.name not in OPTIONAL or field.name in used]
    write_table(folder / MANIFEST, columns, ([getattr(row, column) for column in columns] for row in rows))


def read_manifest(folder: Path) -> list[ManifestRow]:
    """Read manifest.csv of a folder of images, in its order.

    Raises:
        FileNotFoundError: no manifest, or an image that it names is not there.
        ValueError: a column that is not of `OPTIONAL` is missing, or a split is none.
    """
    texts = ("file_name", "source", "source_sha256", "sha256", "licence")
    rows = [
        ManifestRow(
            **{column: row[column] for column in texts},
            width=int(row["width"]),
            height=int(row["height"]),
            split=_split(folder, row["split"]),
            caption=row.get("caption", ""),
            mask_sha256=row.get("mask_sha256", ""),
            image_set=row.get("image_set", ""),
            repeats=int(row.get("repeats", 1)),
        )
        for row in read_table(folder / MANIFEST, (*texts, "width", "height", "split"))
    ]
    for row in rows:
        if not (folder / row.file_name).is_file():
            raise FileNotFoundError(f"{folder / MANIFEST} names {row.file_name}, which is not there")
        if row.mask_sha256 and not (folder / MASKS / row.file_name).is_file():
            raise FileNotFoundError(f"{folder / MANIFEST} speaks of the mask of {row.file_name}, which is not in {MASKS}")
    return rows


def _split(folder: Path, name: str) -> Split:
    for split in (TRAIN, TEST):
        if name == split:
            return split
    raise ValueError(f"{folder / MANIFEST}: {name!r} is no split; it says {TRAIN} or {TEST}")


def write_captions(folder: Path, captions: Mapping[str, str]) -> None:
    """Write metadata.csv (file_name, caption) into a folder of images: with it the folder is an imagefolder of `datasets`.

    Raises:
        ValueError: a caption is empty, which readers of the table would take for a missing value.
    """
    for file_name, caption in captions.items():
        if not caption.strip():
            raise ValueError(f"{file_name}: its caption is empty; give one phrase that every caption has, in caption.prefix")
    write_table(folder / METADATA, METADATA_COLUMNS, captions.items())


def read_captions(folder: Path) -> dict[str, str]:
    """Read metadata.csv of a folder: file name to caption, in the order of the table.

    Raises:
        FileNotFoundError: no table, or an image that it names is not there.
        ValueError: a column is missing, a file stands twice, or the table is empty.
    """
    rows = read_table(folder / METADATA, METADATA_COLUMNS)
    captions = {row["file_name"]: row["caption"] for row in rows}
    if not captions or len(captions) != len(rows):
        raise ValueError(f"{folder / METADATA}: " + ("names a file twice" if captions else "holds no captions"))
    for file_name in captions:
        if not (folder / file_name).is_file():
            raise FileNotFoundError(f"{folder / METADATA} names {file_name}, which is not there")
    return captions


def read_dataset(dataset: Path) -> dict[Split, dict[str, str]]:
    """The captions of both splits of a dataset, as `read_captions` gives them; without held-out images, `test` has none.

    Raises:
        OSError: as `read_captions`.
        ValueError: as `read_captions`.
    """
    held_out = read_captions(dataset / TEST) if (dataset / TEST).is_dir() else {}
    return {TRAIN: read_captions(dataset / TRAIN), TEST: held_out}
