"""Names of files, of any bytes, as messages and tables show them."""

import os
import sys
from collections.abc import Collection
from pathlib import Path

_NAMES_SHOWN = 5


def printable(name: str) -> str:
    r"""A file's name as text: bytes that are not UTF-8 become \x83 and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def names_not_utf8(folder: Path) -> list[str]:
    """The files and folders in a folder, hidden ones too, whose own names are not UTF-8, by their paths in it."""
    paths = (Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files))
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.name != printable(path.name))


def say(names: Collection[str], what: str, advice: str = "") -> None:
    """Print how many files something is said of, and the first of them; nothing if there are none."""
    if names:
        first = ", ".join(printable(name) for name in list(names)[:_NAMES_SHOWN])
        more = ", …" if len(names) > _NAMES_SHOWN else ""
        print(f"{what} ({len(names)}): {first}{more}{advice and '; ' + advice}", file=sys.stderr)
