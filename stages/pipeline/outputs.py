"""Outputs that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = 32 * 2**20
"""Bytes that must be free when a stage ends: on a disk without room, DVC would leave half a dvc.lock behind."""

CHECKPOINTS = ".checkpoints"
NOTHING = "nothing.txt"
"""The only file of an output that holds nothing; of an empty folder, DVC would warn at every look."""


@contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """Give a folder to write into; it takes the name `out`, replacing what was there, only if the block ends well.

    What was there is moved aside and deleted afterwards; after a crash between the two moves, it is put back.
    """
    folder, before = parts_of(out)
    if before.exists() and not out.exists():
        before.replace(out)
    for leftover in (folder, before):
        shutil.rmtree(leftover, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        if out.is_dir() and not out.is_symlink():
            out.replace(before)
        else:
            out.unlink(missing_ok=True)  # a file, or a link
        folder.replace(out)
        _flush_folder(out.parent)
    finally:
        if before.exists() and not out.exists():
            before.replace(out)
        for leftover in (folder, before):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def atomic_file(out: Path) -> Iterator[Path]:
    """Give a path to write to; the file takes the name `out`, flushed to the disk, only if the block ends well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part, _ = parts_of(out)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(out)
        _flush_folder(out.parent)
    finally:
        part.unlink(missing_ok=True)


def parts_of(out: Path) -> tuple[Path, Path]:
    """Where an output is written before it takes its name, and where the folder before it is moved meanwhile."""
    return out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.before.part")


def checkpoints_folder() -> Path:
    """The folder of all checkpoints; in an experiment of `dvc exp run --temp` or a queue, that of the repository itself."""
    return Path(os.environ.get("DVC_ROOT", ".")) / CHECKPOINTS


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_nothing(folder: Path, why: str) -> None:
    """Make a folder an output that holds nothing."""
    (folder / NOTHING).write_text(f"{why}\n")


def holds_something(folder: Path) -> bool:
    """Whether an input is a folder, and one with more in it than `write_nothing` writes."""
    return folder.is_dir() and any(path.name != NOTHING for path in folder.iterdir())


def check_room(folder: Path = Path()) -> None:
    """Refuse to go on where the disk is as good as full.

    Raises:
        OSError: less than `ROOM` is free.
    """
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < ROOM:
        raise OSError(
            f"{folder.resolve()}: {free / 2**20:.0f} MiB are free on this disk, and DVC needs {ROOM / 2**20:.0f} MiB to note "
            "what has run: make room, then run this again (`dvc gc --workspace` drops what the present experiment does not use)"
        )


def _flush_folder(folder: Path) -> None:
    """Have the disk know the names in a folder, where the filesystem can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network filesystems cannot
    finally:
        os.close(descriptor)
