"""Where an unfinished run keeps its checkpoints: outside of DVC's outputs, which DVC deletes before each run."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import xxhash

CHECKPOINTS = ".checkpoints"


@contextmanager
def resumable(stage: str, settings: Mapping[str, object], inputs: Iterable[Path]) -> Iterator[Path]:
    """Give a folder that an interrupted run finds again, and no other run; it is removed when the block ends well.

    Args:
        stage: name of the stage.
        settings: all that determines the run beside inputs and libraries; JSON values.
        inputs: files and folders whose content determines the run, its code among them.

    Raises:
        OSError: the same run is under way in another process.
    """
    folder = checkpoints_folder() / stage / run_digest(settings, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"another process is at this very run ({folder}): wait for it, or end it") from error
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def checkpoints_folder() -> Path:
    """The folder of all checkpoints; in an experiment of `dvc exp run --temp` or a queue, that of the repository itself."""
    return Path(os.environ.get("DVC_ROOT", ".")) / CHECKPOINTS


def compiled_folder() -> Path:
    """The folder of what was compiled: inductor's own, if it is told one, or one beside all checkpoints."""
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or checkpoints_folder() / "compiled")


def run_digest(settings: Mapping[str, object], inputs: Iterable[Path]) -> str:
    """Digest of settings and of the content of files and folders, each in their order, and of the versions that compute."""
    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")}
    digest = hashlib.sha256(json.dumps([settings, libraries], default=str).encode())
    for path in inputs:
        for file in sorted(_files(path)):
            digest.update(f"{file.relative_to(path)} {_file_digest(file)}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or all files of a folder but Python's own."""
    if not path.is_dir():
        yield path
    else:
        yield from (file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def _file_digest(path: Path) -> str:
    """128 bits of a file's content, at the speed of memory: sha256 takes seconds for a model of real size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
