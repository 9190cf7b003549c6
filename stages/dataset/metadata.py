"""The two tables that travel with images: manifest.csv (where they come from) and metadata.csv (what they show)."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

MANIFEST = "manifest.csv"
METADATA = "metadata.csv"
METADATA_COLUMNS = ("file_name", "caption")


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
    """

    file_name: str
    source: str
    source_sha256: str
    sha256: str
    licence: str
    width: int
    height: int


def write_manifest(folder: Path, rows: Iterable[ManifestRow]) -> None:
    """Write manifest.csv into a folder of images."""
    _write_table(folder / MANIFEST, [field.name for field in fields(ManifestRow)], (asdict(row) for row in rows))


def read_manifest(folder: Path) -> list[ManifestRow]:
    """Read manifest.csv of a folder of images, in its order.

    Raises:
        FileNotFoundError: no manifest, or an image that it names is not there.
        ValueError: a column is missing.
    """
    columns = [field.name for field in fields(ManifestRow)]
    rows = [
        ManifestRow(*(row[column] for column in columns[:-2]), width=int(row["width"]), height=int(row["height"]))
        for row in read_table(folder / MANIFEST, columns)
    ]
    for row in rows:
        if not (folder / row.file_name).is_file():
            raise FileNotFoundError(f"{folder / MANIFEST} names {row.file_name}, which is not there")
    return rows


def write_captions(folder: Path, captions: Mapping[str, str]) -> None:
    """Write metadata.csv (file_name, caption) into a folder of images: with it the folder is an imagefolder of `datasets`.

    Raises:
        ValueError: a caption is empty, which readers of the table would take for a missing value.
    """
    for file_name, caption in captions.items():
        if not caption.strip():
            raise ValueError(f"{file_name}: its caption is empty; give one phrase that every caption has, in caption.prefix")
    rows = ({"file_name": file_name, "caption": caption} for file_name, caption in captions.items())
    _write_table(folder / METADATA, METADATA_COLUMNS, rows)


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


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a csv file with a header; other columns than the required ones are kept.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a required column is missing, a row is cut off, or the file is not UTF-8 text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a csv file in UTF-8 ({error})") from error
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(f"{path} lacks the column {missing[0]}; it has: {', '.join(header) or 'none'}")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"{path}: row {number} does not have as many cells as the header")
    return rows


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
