"""What runs keep outside of DVC's outputs, which DVC deletes before each run: checkpoints, and results DVC has not noted yet.

.checkpoints/<stage>/<output>/<digest of the run>/ holds what an unfinished run goes on from, or, in finished/, the result of
one that has ended; last-<digest>/ beside it the last result of a stage that takes over parts of it. Both are hard links to the
output's files, which take no room while the output or DVC's cache has the same files.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from stages.pipeline.fingerprints import fingerprint, read_pins
from stages.pipeline.lockfile import content_md5, locked_outs
from stages.pipeline.outputs import atomic_directory, atomic_file, checkpoints_folder, remove
from stages.pipeline.seals import file_digest, is_foreign, is_whole

ROOT = Path(__file__).parents[2]
FINISHED, FINISHED_MD5, DAMAGED, LOCK = "finished", "finished.md5", "damaged", "lock"
LAST, LAST_MD5 = "last-", "last.md5"
LAST_RESULTS = 8
"""Of one output, by as many different makings as one switches between."""


@contextmanager
def resumable(stage: str, settings: Mapping[str, object], inputs: Iterable[Path], out: Path) -> Iterator[Path | None]:
    """Give a folder that an interrupted run finds again, and no other run.

    If this very run has ended before, but DVC could not note it, `out` is given its result again and there is no folder: None.
    When the block ends well, what `out` holds is kept in place of the checkpoints, until dvc.lock has it or another run has
    written the same output. Files that are damaged, or that others may have written, are set aside.

    Args:
        stage: name of the stage, whose code determines the run too, with all that it imports.
        settings: all that determines the run beside inputs, code and libraries; JSON values.
        inputs: files and folders whose content determines the run.
        out: the folder that the block writes.

    Raises:
        OSError: the same run is under way in another process.
    """
    forget_noted()
    folder = checkpoints_folder() / stage / out.name / stage_digest(stage, settings, inputs)
    with _locked(folder):
        _set_aside_damaged(folder)
        if (folder / FINISHED_MD5).is_file():
            _copy_links(folder / FINISHED, out)
            print(f"{out}: this very run has ended before: its result is taken from {folder} (delete that to run it again)")
            yield None
            return
        yield folder
        if out.is_dir():
            _keep(folder, out)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def last_output(stage: str, out: Path, made_by: str) -> Path:
    """Where the last result of an output lies that was made alike, of which a stage may take over parts.

    It is `out` where that is there, as after a run by hand. DVC deletes it before the stage runs: then it is what `keep_output`
    has kept, if nobody else may have written there and it is whole.

    Args:
        stage: name of the stage.
        out: its output.
        made_by: digest of all that the parts depend on.
    """
    folder = _last_folder(stage, out, made_by)
    kept, note = folder / out.name, folder / LAST_MD5
    if out.exists() or not note.is_file() or is_foreign(folder):
        return out
    return kept if note.read_bytes() == content_md5(kept).encode() else out


def keep_output(stage: str, out: Path, made_by: str) -> None:
    """Keep a result for `last_output`, where DVC runs the stage; what another process is just keeping is left alone."""
    if "DVC_ROOT" not in os.environ:
        return
    folder = _last_folder(stage, out, made_by)
    with suppress(OSError), _locked(folder):
        (folder / LAST_MD5).unlink(missing_ok=True)
        folder.chmod(0o700)
        _copy_links(out, folder / out.name)
        with atomic_file(folder / LAST_MD5) as part:
            part.write_text(content_md5(folder / out.name))
    notes = sorted(folder.parent.glob(f"{LAST}*/{LAST_MD5}"), key=lambda note: note.stat().st_mtime_ns)
    for note in notes[:-LAST_RESULTS]:
        _remove(note.parent)


def _last_folder(stage: str, out: Path, made_by: str) -> Path:
    return checkpoints_folder() / stage / out.name / f"{LAST}{made_by[:16]}"


def stage_digest(stage: str, settings: Mapping[str, object], inputs: Iterable[Path] = ()) -> str:
    """The digest of all that decides what a stage makes: its code, its settings, its inputs and the versions that compute."""
    return run_digest({**settings, "code": _code(stage)}, inputs)


def _code(stage: str) -> str:
    """The fingerprint of a stage's code, as `sync` writes it for DVC: an edit that reruns the stage begins another run."""
    lock = ROOT / "requirements.lock"
    return fingerprint(f"stages.{stage}", ROOT, read_pins(lock) if lock.is_file() else {})


def forget_noted() -> None:
    """Remove the finished results that dvc.lock has: DVC keeps them itself."""
    finished = list(checkpoints_folder().glob(f"*/*/*/{FINISHED_MD5}"))
    try:
        noted = {(out.path.name, out.md5) for out in locked_outs()} if finished else set()
    except ValueError:
        return
    for note in finished:
        if (note.parent.parent.name, note.read_text(errors="replace")) in noted:
            _remove(note.parent)


def run_digest(settings: Mapping[str, object], inputs: Iterable[Path]) -> str:
    """Digest of settings and of the content of files and folders, each in their order, and of the versions that compute."""
    libraries = {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")}
    digest = hashlib.sha256(json.dumps([settings, libraries], default=str).encode())
    for path in inputs:
        for file in sorted(_files(path)):
            digest.update(f"{file.relative_to(path)} {file_digest(file)}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or all files of a folder but Python's own."""
    if not path.is_dir():
        yield path
    else:
        yield from (file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder, and hold it against other processes."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"another process is at this very run ({folder}): wait for it, or end it") from error
        except OSError as error:
            print(f"warning: {folder} cannot be locked ({error.strerror}): see that no other process is at this very run")
        if not (folder / LOCK).exists() or not os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat()):
            raise OSError(f"another process has just removed {folder}: run this again")
        yield


def _set_aside_damaged(folder: Path) -> None:
    """Move all content away if any of it is not what was written; what was moved before is deleted."""
    problem = _problem(folder) if any(path.name != LOCK for path in folder.iterdir()) else ""
    if not problem:
        return
    damaged = folder.parent / DAMAGED
    shutil.rmtree(damaged, ignore_errors=True)
    damaged.mkdir(mode=0o700)
    (folder / FINISHED_MD5).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name != LOCK:
            path.replace(damaged / path.name)
    folder.chmod(0o700)
    print(f"warning: {problem}: set aside in {damaged}, and the run starts over", flush=True)


def _problem(folder: Path) -> str:
    """Why the content of a run's folder must not be used; "" if it may."""
    if is_foreign(folder):
        return f"{folder}: others than this user may have written there"
    note = folder / FINISHED_MD5
    if note.is_file():
        fits = note.read_bytes() == content_md5(folder / FINISHED).encode()
        return "" if fits else f"{folder / FINISHED}: not what was written"
    shutil.rmtree(folder / FINISHED, ignore_errors=True)  # of a process that was killed before it was whole
    for leftover in sorted(path for path in folder.rglob(".*") if path.name.endswith(".part")):
        if leftover.exists():  # it may have lain in another
            remove(leftover)
    sealed = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".") and path.name != LOCK)
    return next((f"{path}: not what was written" for path in sorted(sealed) if not is_whole(path)), "")


def _keep(folder: Path, out: Path) -> None:
    """Keep a result in place of the checkpoints that led to it, and of the result of another run for the same output."""
    _copy_links(out, folder / FINISHED)
    with atomic_file(folder / FINISHED_MD5) as part:
        part.write_text(content_md5(folder / FINISHED))
    for path in folder.iterdir():
        if path.is_dir() and path.name != FINISHED:
            shutil.rmtree(path)
        elif path.name not in (FINISHED, FINISHED_MD5, LOCK):
            path.unlink()
    for note in folder.parent.glob(f"*/{FINISHED_MD5}"):
        if note.parent != folder:
            _remove(note.parent)


def _copy_links(source: Path, target: Path) -> None:
    """Make `target` the same file, or a folder of the same files: hard links, or copies where the filesystem has none."""
    if source.is_file():
        with atomic_file(target) as part:
            _link(str(source), str(part))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(target) as part:
        shutil.copytree(source, part, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _remove(folder: Path) -> None:
    """Remove the folder of a run, unless a process is at it."""
    with suppress(OSError), _locked(folder):
        shutil.rmtree(folder, ignore_errors=True)
