"""What lies in a folder of images: its pictures, found by suffix or by content, and what is left out of it."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from stages.dataset.file_paths import say
from stages.dataset.images import looks_like_image

IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pjp", ".pjpeg", ".png", ".tif", ".tiff"}
    | {".webp"}
)
CAPTION_SUFFIXES = (".txt", ".caption")
_TEXT_SUFFIXES = frozenset({*CAPTION_SUFFIXES, ".csv", ".json", ".jsonl", ".md", ".toml", ".yaml", ".yml"})


def visible_files(folder: Path) -> dict[str, Path]:
    """The files of a folder, its subfolders and the folders that links in it lead to, by their paths in it, sorted.

    Hidden files and folders are left out, and with a line that says so, hidden pictures (macOS leaves such beside others). A
    folder is looked at once, however many links lead to it.

    Raises:
        OSError: a folder cannot be read.
    """
    starts = [folder]
    found = {path.relative_to(folder).as_posix(): path for path in _walk(starts)}
    links = [f"{link.relative_to(folder).as_posix()}/" for link in starts[1:]]
    followed = [link for link in links if any(name.startswith(link) for name in found)]
    say(followed, "followed links to folders", "what changes behind them makes no stage run again: force this one then")
    hidden = [name for name in found if PurePosixPath(name).name.startswith(".")]
    say(sorted(name for name in hidden if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES), "left out hidden files")
    return {name: found[name] for name in sorted(found.keys() - set(hidden))}


def list_images(files: Mapping[str, Path]) -> dict[str, Path]:
    """Those of the files that are pictures: by suffix, or by how the content begins where the suffix says nothing."""
    images = {name: path for name, path in files.items() if _is_image(path)}
    others = [name for name in files if name not in images and PurePosixPath(name).suffix.lower() not in _TEXT_SUFFIXES]
    say(others, "left out files that are no pictures of a kind that is read here", "convert pictures to PNG, unpack archives")
    return images


def image_names(folder: Path) -> list[str]:
    """The paths of the pictures in a folder; nothing is said of what is left out."""
    found = (path for path in _walk([folder]) if not path.name.startswith(".") and _is_image(path))
    return [path.relative_to(folder).as_posix() for path in found]


def _is_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in _TEXT_SUFFIXES or not path.is_file():
        return False
    return suffix in IMAGE_SUFFIXES or looks_like_image(path)


def _walk(starts: list[Path]) -> Iterator[Path]:
    """All files but those of hidden folders; links to folders are added to `starts`, to come after what lies there itself."""
    seen: set[str] = set()
    for start in starts:
        for parent, folders, files in os.walk(start, onerror=_raise):
            real = os.path.realpath(parent)
            folders[:] = sorted(name for name in folders if not name.startswith(".") and real not in seen)
            if real not in seen:
                starts.extend(link for name in folders if (link := Path(parent, name)).is_symlink())
                yield from (Path(parent, name) for name in files)
            seen.add(real)


def _raise(error: OSError) -> None:
    raise error
