"""Captions that a user wrote: beside the images, in a table, or in the name of a folder.

They are read as the field's tools read them: `a.txt` or `a.caption` beside `a.png` (kohya's sd-scripts, A1111; the first
line counts), metadata.csv or metadata.jsonl with `file_name` and `caption` or `text` (imagefolder of Hugging Face's
datasets; the table of a subfolder speaks of that subfolder), and for what has neither the name of its folder without the
repeats, such as `10_mychar 1girl` (sd-scripts), which also says how often an epoch shows its images.
"""

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.dataset.file_paths import printable, say
from stages.dataset.folders import CAPTION_SUFFIXES
from stages.pipeline.tables import read_table

TABLES = ("metadata.csv", "metadata.jsonl")
CAPTION_COLUMNS = ("caption", "text")
"""What tables call a caption; the first of them that a table has."""

_REPEATED = re.compile(r"(\d{1,3})_(.+)")


@dataclass(frozen=True)
class ImageSet:
    """Images that belong together.

    Attributes:
        name: such as the name of the subject; "" where they have none.
        repeats: how often an epoch shows each of them.
    """

    name: str = ""
    repeats: int = 1


NO_SET = ImageSet()


def image_sets(images: Iterable[str], folder: str) -> dict[str, ImageSet]:
    """The set of each image, by the name of its folder, as sd-scripts has it: `10_mychar` is the set mychar, shown ten times.

    Images of a folder without such a number belong to none.

    Args:
        images: their paths in the folder.
        folder: its own name, which counts for images that lie in no subfolder.
    """
    found = {image: _REPEATED.fullmatch(PurePosixPath(folder, image).parent.name) for image in images}
    return {image: ImageSet(printable(tidy(name[2])), int(name[1])) if name else NO_SET for image, name in found.items()}


def own_captions(files: Mapping[str, Path], images: Collection[str], folder: str) -> dict[str, str]:
    """The captions that the images of a folder came with; prints how many there are of each kind.

    Args:
        files: all files of the folder, by their paths in it.
        images: the paths of its images.
        folder: its own name, which counts for images that lie in no subfolder.

    Returns:
        Path of an image to its caption; images without one are not in it.

    Raises:
        ValueError: a caption or a table is not UTF-8 text, or a line of a table is wrong.
    """
    beside = _beside(files, images)
    listed = {name: text for name, text in _listed(files).items() if name in images}
    named = {name: of_folder.name for name, of_folder in image_sets(images, folder).items() if of_folder.name}
    found = {**named, **listed, **beside}
    if found:
        kinds = {
            "in text files beside them": len(beside),
            "in tables": len(listed.keys() - beside),
            "from the names of their folders": len(named.keys() - listed.keys() - beside.keys()),
        }
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        print(f"images with a caption of their own: {counts}; without: {len(images) - len(found)}", file=sys.stderr)
    return found


def tidy(caption: str) -> str:
    """A caption on one line, with single spaces."""
    return " ".join(caption.split())


def _beside(files: Mapping[str, Path], images: Iterable[str]) -> dict[str, str]:
    """Captions in text files that bear an image's name, with or without its suffix; .txt counts before .caption."""
    texts = {_lower_suffix(name): name for name in files if PurePosixPath(name).suffix.lower() in CAPTION_SUFFIXES}
    owners: dict[str, str] = {}
    for image in images:
        stem = image.removesuffix(PurePosixPath(image).suffix)
        names = (f"{part}{suffix}" for suffix in CAPTION_SUFFIXES for part in (stem, image))
        text = next((texts[name] for name in names if name in texts), None)
        if text is not None:
            owners[image] = text
    lines = {text: _lines(files[text]) for text in sorted(set(owners.values()))}
    say([name for name in texts.values() if name not in lines], "text files that bear no image's name are not used")
    say([name for name, text in lines.items() if not text], "caption files without a word count as none")
    say([name for name, text in lines.items() if len(text) > 1], "of caption files with more lines, the first counts")
    return {image: lines[text][0] for image, text in owners.items() if lines[text]}


def _lower_suffix(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) + suffix.lower()


def _lines(path: Path) -> list[str]:
    """The lines of a text file that hold words."""
    return [line for line in map(tidy, _text(path).split("\n")) if line]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{printable(str(path))} is not UTF-8 text ({error}); save it as UTF-8") from error


def _listed(files: Mapping[str, Path]) -> dict[str, str]:
    """Captions in tables, by the paths of the images they speak of."""
    captions: dict[str, str] = {}
    for name, path in files.items():
        if PurePosixPath(name).name in TABLES:
            rows = _READERS[path.suffix](path)
            folder = PurePosixPath(name).parent
            found = {(folder / str(row["file_name"]).replace("\\", "/")).as_posix(): _caption(row) for row in rows}
            say(sorted(found.keys() - files.keys()), f"{printable(name)} names files that are not there")
            if rows and not any(column in row for row in rows for column in CAPTION_COLUMNS):
                print(f"{printable(name)} has no column {' or '.join(CAPTION_COLUMNS)}: no captions there", file=sys.stderr)
            captions |= {image: caption for image, caption in found.items() if caption}
    return captions


def _caption(row: Mapping[str, object]) -> str:
    """The first of the columns that has words."""
    return next((words for column in CAPTION_COLUMNS if (words := tidy(str(row.get(column) or "")))), "")


def _read_csv(path: Path) -> list[dict[str, str]]:
    return read_table(path, ("file_name",))


def _read_jsonl(path: Path) -> list[dict[str, object]]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise ValueError(f"{printable(str(path))}: line {number} is not JSON ({error})") from error
        if row is not None and not (isinstance(row, dict) and "file_name" in row):
            raise ValueError(f"{printable(str(path))}: line {number} is not an object with file_name")
        if row is not None:
            rows.append(row)
    return rows


_READERS: dict[str, Callable[[Path], list]] = {".csv": _read_csv, ".jsonl": _read_jsonl}
