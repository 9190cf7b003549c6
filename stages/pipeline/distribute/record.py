"""dvc.lock as it will be, and the snapshot in which DVC says what has changed."""

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Any

from stages.pipeline.distribute.plan import Cell, is_ours
from stages.pipeline.distribute.remote import Courier
from stages.pipeline.outputs import atomic_file

SECONDS_BETWEEN_WRITES = 5.0
HAD = Path(".checkpoints/distribute-had.json")
"""The stages that dvc.lock listed before the first of the runs that have not come to their end."""


class Record:
    """What is known of each stage; the real dvc.lock follows it, in DVC's order.

    Args:
        root: the repository.
        snapshot: the folder that the run works on.
        cells: the plan, in DVC's order.
    """

    def __init__(self, root: Path, snapshot: Path, cells: Mapping[str, Cell]) -> None:
        from dvc.repo import Repo, lock_repo
        from dvc.utils.serialize import load_yaml

        self.path, self.order = root / "dvc.lock", list(cells)
        self.lock: dict[str, Any] = load_yaml(str(self.path)) if self.path.is_file() else {"schema": "2.0"}
        self.stages: dict[str, Any] = self.lock.setdefault("stages", {})
        self.had_file = root / HAD
        self.had = json.loads(self.had_file.read_text()) if self.had_file.is_file() else list(self.stages)
        (snapshot / "dvc.lock").write_text(json.dumps(self.lock))
        self.repo = Repo(str(snapshot))
        self.open = ExitStack()
        self.open.callback(self.repo.close)
        self.open.enter_context(lock_repo(self.repo))
        self.loaded = {stage.name: stage for stage in self.repo.index.stages if is_ours(stage)}
        self.written, self.stale = time.monotonic(), False

    def known(self, name: str) -> str:
        """Why a stage needs no worker, all that it reads being as it will be; its outputs are linked then.

        Returns:
            "unchanged" where dvc.lock has it so, "cached" where DVC's cache of runs does, and "" where it has to run.
        """
        stage = self.loaded[name]
        if name in self.stages and not stage.changed_stage() and not stage.changed_deps() and self._link(name):
            return "unchanged"
        return "cached" if self._restore(name) else ""

    def _restore(self, name: str) -> bool:
        from dvc.exceptions import DvcException
        from dvc.stage.cache import RunCacheNotFoundError
        from dvc.stage.serialize import to_single_stage_lockfile

        stage = self.loaded[name]
        try:
            with chdir(self.repo.root_dir):  # DVC's cache of runs takes dvc.yaml to be there
                self.repo.stage_cache.restore(stage)
                stage.save()
        except (RunCacheNotFoundError, OSError, DvcException):  # the cache may have lost a part of it
            return False
        self.stages[name], self.stale = to_single_stage_lockfile(stage), True
        return True

    def outputs(self, names: Iterable[str]) -> list[Any]:
        """What stages make, as DVC knows it; without what its cache does not hold."""
        return [out for name in names for out in self.loaded[name].outs if out.use_cache]

    def note(self, name: str, entry: Mapping[str, Any], courier: Courier | None) -> None:
        """Note what a worker made of a stage, and have its outputs in the snapshot.

        Args:
            name: the stage.
            entry: what dvc.lock will say of it.
            courier: brings its outputs here; None where the worker had this cache.

        Raises:
            OSError: DVC's cache does not hold them.
        """
        from dvc.stage.loader import StageLoader

        StageLoader.fill_from_lock(self.loaded[name], entry)
        if courier is not None:
            courier.fetch(self.outputs([name]))
        if not self._link(name):
            raise FileNotFoundError(f"{name}: its outputs are not in DVC's cache ({self.repo.cache.local_cache_dir})")
        if courier is not None:
            with chdir(self.repo.root_dir):
                self.repo.stage_cache.save(self.loaded[name])
        self.stages[name], self.stale = dict(entry), True
        if time.monotonic() - self.written > SECONDS_BETWEEN_WRITES:
            self.write()

    def _link(self, name: str) -> bool:
        from dvc.exceptions import DvcException

        stage = self.loaded[name]
        if any(not out.use_cache for out in stage.outs):
            return True
        try:
            stage.checkout(allow_missing=True, force=True)
            return all(out.exists for out in stage.outs) and not stage.changed_outs()
        except (OSError, DvcException):  # the cache has lost it
            return False

    def excerpt(self, cell: Cell) -> str:
        """A dvc.lock with what a worker needs of it for a stage."""
        names = [name for name in (*cell.upstream, cell.name) if name in self.stages]
        return json.dumps({"schema": "2.0", "stages": {name: self.stages[name] for name in names}})

    def write(self) -> None:
        """Bring the real dvc.lock up to date: entries that it had stay where they are, new ones follow in DVC's order.

        What it had is noted until a run comes to its end, so that the order is the same however often it was interrupted.
        """
        from dvc.utils.serialize import dump_yaml

        if not self.stale:
            return
        self.had_file.parent.mkdir(parents=True, exist_ok=True)
        self.had_file.write_text(json.dumps(self.had))
        had = [name for name in self.had if name in self.stages]
        new = [name for name in self.order if name in self.stages and name not in self.had]
        self.lock["stages"] = {name: self.stages[name] for name in (*had, *new)}
        with atomic_file(self.path) as part:
            dump_yaml(str(part), self.lock)
        self.written, self.stale = time.monotonic(), False

    def finish(self) -> None:
        """Note that nothing is left to do."""
        self.write()
        self.had_file.unlink(missing_ok=True)

    def close(self) -> None:
        """Write what is known."""
        self.write()
        self.open.close()


def moved_on(snapshot: Path, root: Path, sources: Iterable[Path]) -> list[str]:
    """The files that a run has read and that are no longer what they were."""
    changed = []
    for source in (Path("params.yaml"), Path("dvc.yaml"), *sources):
        was = snapshot / source
        files = [was] if was.is_file() else [file for file in sorted(was.rglob("*")) if file.is_file()]
        for file in files:
            now = root / file.relative_to(snapshot)
            if "__pycache__" not in file.parts and not _same(file, now):
                changed.append(str(file.relative_to(snapshot)))
    return changed


def _same(was: Path, now: Path) -> bool:
    try:
        return was.samefile(now) or (was.stat().st_size == now.stat().st_size and was.read_bytes() == now.read_bytes())
    except OSError:
        return False
