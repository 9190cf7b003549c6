"""Folders in which DVC finds a part of the repository: the snapshot that a run works on, and a workspace for each stage.

Each is a repository of DVC without Git, with the cache of the real one. What DVC has as outputs is linked out of the cache, all
else out of the snapshot: small files are copied, so that an edit of the original does not reach them, large ones linked.
"""

import fcntl
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PIPELINE_FILES = ("dvc.yaml", "params.yaml", ".dvcignore")
COPIED_BYTES = 2**20
"""Files up to this size are copied into the snapshot."""
CONFIG = "[core]\n    no_scm = true\n    analytics = false\n    autostage = false\n[cache]\n    dir = {cache}\n"


def make_repository(folder: Path, original: Path, cache: Path) -> None:
    """Make a folder a repository of DVC, with the pipeline and the settings of another.

    Args:
        folder: made where it is not there.
        original: the real repository, or a snapshot of it.
        cache: DVC's.
    """
    (folder / ".dvc").mkdir(parents=True)
    config = (original / ".dvc/config").read_text() if (original / ".dvc/config").is_file() else ""
    (folder / ".dvc/config").write_text(config)
    (folder / ".dvc/config.local").write_text(CONFIG.format(cache=cache))
    for name in PIPELINE_FILES:
        if (original / name).exists():
            shutil.copyfile(original / name, folder / name)


def link(folder: Path, original: Path, files: Iterable[Path]) -> None:
    """Have files and folders of another folder in this one, as links."""
    for file in files:
        if (original / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to(original / file)


def take(source: Path, target: Path) -> None:
    """Have the content of a file or folder at another place, as it is now; Python's compiled files are left out."""
    if source.is_dir():
        shutil.copytree(
            source, target, copy_function=_take_file, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        _take_file(str(source), str(target))


def _take_file(source: str, target: str) -> None:
    real = Path(source).resolve()
    if real.stat().st_size > COPIED_BYTES:
        try:
            Path(target).hardlink_to(real)
        except OSError:  # another file system
            Path(target).symlink_to(real)
        return
    shutil.copy2(real, target)


@contextmanager
def held_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder that is removed at the end of the block; `remove_left` does it where the process was killed."""
    folder = parent / name
    parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _lock(folder).unlink(missing_ok=True)


def remove_left(parent: Path) -> None:
    """Remove the folders of processes that are no more."""
    for folder in parent.iterdir() if parent.is_dir() else ():
        if folder.is_dir() and not _is_held(folder):
            shutil.rmtree(folder, ignore_errors=True)
            _lock(folder).unlink(missing_ok=True)


def _is_held(folder: Path) -> bool:
    try:
        with _lock(folder).open("r") as lock:
            return not _locks(lock)
    except FileNotFoundError:
        return False


def _locks(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
