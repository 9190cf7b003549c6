"""What a worker does: one stage, in a workspace of its own."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.pipeline.distribute.remote import Carried, fetch_inputs, prepare, send_outputs
from stages.pipeline.distribute.workspaces import held_folder, link, make_repository, remove_left

GUARD = Path(__file__).with_name("guard.py")
LOG_LINES = 15
WATCHED: list[threading.Thread] = []


@dataclass(frozen=True)
class Task:
    """One stage, for a worker.

    Attributes:
        stage: its name.
        snapshot: the folder that the run works on.
        workspaces: the folder in which the stage gets its own.
        root: the repository; its .checkpoints are those of all workspaces.
        cache: DVC's.
        sources: what stages read and no stage makes, the code among it, relative to the repository: a stage's settings are
            checked with those of others, which name files too.
        producers: the stages whose outputs it reads.
        lock: the text of a dvc.lock with these stages, and with this one, if it was there.
        log: the file for what the stage prints.
        environment: of the stage's process, besides the worker's own.
        carried: what it takes along; None for a worker that sees the repository.
    """

    stage: str
    snapshot: Path
    workspaces: Path
    root: Path
    cache: Path
    sources: tuple[Path, ...]
    producers: tuple[str, ...]
    lock: str
    log: Path
    environment: Mapping[str, str]
    carried: Carried | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a stage.

    Attributes:
        entry: what dvc.lock says of it; None where it failed.
        log: what it printed: all of it from a worker that does not see the repository, else the last lines.
        host: where it ran.
        seconds: the whole of it.
        overhead: seconds of processor time of the worker itself.
        accelerator: the GPUs that it saw; "" where nothing was said of them.
    """

    entry: Mapping[str, Any] | None
    log: Sequence[str]
    host: str
    seconds: float
    overhead: float
    accelerator: str


def run_cell(task: Task) -> Outcome:
    """Run a stage, if DVC's cache of runs does not hold it; its outputs are then in DVC's cache."""
    _die_with_parent()
    began, used = time.monotonic(), time.process_time()
    with held_folder(task.workspaces, f"{task.stage.replace('@', '-')}-{os.getpid()}") as folder, _printing_to(task.log):
        entry = _reproduce(task, folder)
    lines = task.log.read_text(errors="replace").splitlines()[0 if task.carried else -LOG_LINES :]
    host, accelerator = os.uname().nodename, os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return Outcome(entry, lines, host, time.monotonic() - began, time.process_time() - used, accelerator)


def run_carried(task: Task, code: Path, home: Path) -> Outcome:
    """Run a stage where nothing of the repository is.

    Args:
        task: with paths of the machine that sent it.
        code: the folder with what came along.
        home: the worker's folder.
    """
    assert task.carried is not None
    own = home / task.carried.repository
    remove_left(own / "cells")
    here = replace(
        task, snapshot=code, workspaces=own / "cells", root=own, cache=home / "cache", log=own / "logs" / task.log.name
    )
    return run_cell(here)


def _reproduce(task: Task, folder: Path) -> Mapping[str, Any] | None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo
    from dvc.utils.serialize import load_yaml

    make_repository(folder, task.snapshot, task.cache)
    link(folder, task.snapshot, task.sources)
    (folder / "dvc.lock").write_text(task.lock)
    shell = folder / ".dvc/guard"
    shell.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{GUARD}" "$@"\n')
    shell.chmod(0o755)
    if task.carried is not None:
        prepare(folder, task.carried)
    own = {"SHELL": str(shell), "DVC_SITE_CACHE_DIR": str(folder / ".dvc/tmp/site"), "DVC_ROOT": str(task.root)}
    with _environment({**task.environment, **own}), chdir(folder):
        repo: Any = Repo(str(folder))
        try:
            with lock_repo(repo):
                fetch_inputs(repo, task.producers, task.carried)
                repo.reproduce(targets=[task.stage], single_item=True)
                if task.carried is not None:
                    send_outputs(repo, task.stage, task.carried)
        except (DvcException, OSError) as error:
            print(f"{task.stage}: {' '.join(str(error).split())}", flush=True)
            return None
        finally:
            repo.close()
    return load_yaml(str(folder / "dvc.lock"))["stages"][task.stage]


def _die_with_parent() -> None:
    """End this worker when the pool of workers that started it is no more; the guard of a stage that runs then ends that."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if not WATCHED:
        WATCHED.append(threading.Thread(target=watch, daemon=True))
        WATCHED[0].start()


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Have all that this process and its children print go to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with log.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in enumerate(before, start=1):
            os.dup2(old, number)
            os.close(old)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
