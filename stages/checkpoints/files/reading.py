"""Reading text and JSON, and refusing what is not the file that it should be: a pipe, a Git LFS pointer, a web page."""

import json
from pathlib import Path
from typing import Any

from stages.checkpoints.messages import shown

MAX_JSON = 16 * 2**20
"""Bytes; the index of SDXL's shards has 0.2 MB."""
MOST_LEVELS = 32
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
_ZIP = b"PK\x03\x04"
_MESSAGE = 2**16  # bytes; a longer text is no server's answer


def check_is_file(path: Path) -> None:
    """Refuse what would not be read to an end, such as a pipe.

    Raises:
        ValueError: It is there, and no file.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: {'a directory' if path.is_dir() else 'a pipe or a device'}, not a file")


def refuse_stand_in(path: Path) -> None:
    """Say why a file could not be read, if it is something else that was saved in place of the download.

    Raises:
        ValueError: It is a pointer of Git LFS, a web page, the answer of a server or a file with the name of another kind.
    """
    with path.open("rb") as file:
        content = file.read(_MESSAGE + 1)
    start = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(_LFS_POINTER):
        raise ValueError(f"{path}: a pointer of Git LFS in place of the file: run `git lfs pull` in the repository it is from")
    if content.startswith(_ZIP) and path.suffix == ".safetensors":
        raise ValueError(f"{path}: a .ckpt under the name of another kind: rename it to {path.with_suffix('.ckpt').name}")
    if start.lower().startswith(_PAGES):
        raise ValueError(
            f"{path}: a web page in place of the file: what was saved is a page about it, or one that asks to log in; "
            "download it again by the link of the file itself"
        )
    if path.suffix != ".json" and 0 < len(content) <= _MESSAGE and content.isascii() and content.decode().isprintable():
        raise ValueError(
            f"{path}: a text, not a checkpoint, perhaps the answer of a server; download it again: {shown(content)}"
        )


def read_text(path: Path, most: int) -> str:
    """Read a text file of at most so many bytes.

    Raises:
        ValueError: It is longer, no file, or no text in UTF-8.
    """
    check_is_file(path)
    if path.stat().st_size > most:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; {most:,} are read")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no text in UTF-8: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; `ValueError` if the file holds none."""
    try:
        values = json.loads(read_text(path, MAX_JSON))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: not a model in the diffusers layout") from error
    except (json.JSONDecodeError, RecursionError) as error:
        refuse_stand_in(path)
        raise ValueError(f"{path} is not JSON: {shown(error)}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object")
    if not is_shallow(values):
        raise ValueError(f"{path}: lists and objects of more than {MOST_LEVELS} levels, which no config has")
    return values


def is_shallow(value: object, levels: int = MOST_LEVELS) -> bool:
    """Whether lists and objects are nested at most `levels` deep: the JSON library reads deeper ones than it can write."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(is_shallow(child, levels - 1) for child in children)
