"""Files that are kept between runs, each with a digest of its content beside it, so that damage shows before they are used."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import xxhash

from stages.pipeline.outputs import atomic_file


@contextmanager
def sealed_file(path: Path) -> Iterator[Path]:
    """Give a path to write to, as `atomic_file` does, and note the digest of what was written.

    It is noted before the file takes its name, beside the digest of the content before: so one of the two fits, whenever the
    process is killed.
    """
    seal = seal_of(path)
    with atomic_file(path) as part:
        yield part
        before = [file_digest(path).encode()] if seal.is_file() and is_whole(path) else []
        with atomic_file(seal) as note:
            note.write_bytes(b"\n".join([*before, file_digest(part).encode()]))


def is_whole(path: Path) -> bool:
    """Whether a file has the content that it was sealed with."""
    seal = seal_of(path)
    return path.is_file() and seal.is_file() and file_digest(path).encode() in seal.read_bytes().split()


def seal_of(path: Path) -> Path:
    """Where the digest of a file is noted; a hidden file."""
    return path.with_name(f".{path.name}.xxh3")


def is_own(path: Path) -> bool:
    """Whether a file or folder belongs to this user, and nobody else may write to it."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def is_foreign(folder: Path) -> bool:
    """Whether others may have written to a folder; False where the filesystem cannot tell, as some of Windows and networks."""
    if is_own(folder):
        return False
    with TemporaryDirectory(dir=folder.parent) as made_now:
        return is_own(Path(made_now))


def file_digest(path: Path) -> str:
    """128 bits of a file's content, at the speed of memory: sha256 takes seconds for a model of real size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
