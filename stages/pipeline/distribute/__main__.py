"""Run the experiment as `dvc repro` does, on several workers at once: of this machine, of Slurm, of PBS, of Kubernetes.

    python -m stages.pipeline.distribute                                # this machine (cluster=local)
    python -m stages.pipeline.distribute cluster=slurm cluster.executors.0.provider.partition=gpu
    python -m stages.pipeline.distribute cluster=slurm --dry            # only say what would run
    python -m stages.pipeline.distribute cluster=ssh cluster.remote=storage 'cluster.executors.0.hosts=[one,two]' …

What can run at once is what dvc.yaml allows. The result is that of `dvc repro`, to the byte: data/, dvc.lock and the report.
What is edited meanwhile changes nothing of what runs. Whatever ends it, the same command goes on: what is finished is in DVC's
cache, trainings go on from their checkpoints. Settings are in conf/cluster, for `cluster.setting=value` in Hydra's grammar.
"""

import fcntl
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.config import read_params
from stages.pipeline.distribute.coordinator import Distribution, run_local
from stages.pipeline.distribute.engine import Engine, core_count, fill_in, gpu_count, label_for, read_cluster
from stages.pipeline.distribute.plan import Cell, is_ours, read_plan, sources_of
from stages.pipeline.distribute.record import Record, moved_on
from stages.pipeline.distribute.remote import LOCKED, Courier
from stages.pipeline.distribute.show import Showing
from stages.pipeline.distribute.workspaces import held_folder, make_repository, remove_left, take
from stages.pipeline.interruption import Interrupted, handled
from stages.pipeline.wording import counted

PLACE = Path(".dvc/tmp/distribute")
"""For the snapshot, workspaces and what Parsl writes; of this run alone."""
EVENTS = Path(".checkpoints/distribute.jsonl")
LOGS = Path(".checkpoints/logs")
FROM_CACHE = "from DVC's cache of runs"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, and run; the status is 1 where a stage failed, 128 and a signal's number where one came."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word in ("-h", "--help") for word in words):
        print(__doc__)
        return
    dry, words = "--dry" in words, [word for word in words if word != "--dry"]
    status = 0
    with errors_in_one_line("distribute"):
        try:
            with handled():
                status = distribute(Path.cwd(), words, dry)
        except Interrupted as interrupted:
            print("distribute: interrupted; the same command goes on from here", file=sys.stderr)
            status = 128 + interrupted.signal_number
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of the engine would be waited for


def distribute(root: Path, words: Sequence[str], dry: bool) -> int:
    """Run all stages that have to run; the exit status."""
    cluster = read_cluster(words)
    runtime = read_params()["runtime"]
    gpus, cores = gpu_count(), core_count()
    for executor in cluster["executors"]:
        fill_in(executor, runtime, gpus, cores)
    with _alone(root):
        cells = read_plan(root)
        if missing := [(cell.name, path) for cell in cells.values() for path in cell.sources if not (root / path).exists()]:
            name, path = missing[0]
            raise FileNotFoundError(f"{path}: is not there, and {name} reads it: bring it, or change the setting that names it")
        local = _local(cells)
        if not dry:
            run_local(root, local)
        remove_left(root / PLACE)
        with held_folder(root / PLACE, f"run-{os.getpid()}") as place, _dvc_locked(root) as repo, ExitStack() as stack:
            os.environ["DVC_SITE_CACHE_DIR"] = str(place / "site")
            logging.getLogger("dvc").setLevel(logging.WARNING)  # what it does is said here
            snapshot, sources = place / "snapshot", _sources(cells)
            make_repository(snapshot, root, Path(repo.cache.local_cache_dir))
            for source in sources:
                if (root / source).exists():  # not yet, where a dry run makes nothing
                    take(root / source, snapshot / source)
            record = Record(root, snapshot, cells)
            stack.callback(record.close)
            if dry:
                return _say_plan(cells, record, cluster, local)
            courier, parsl = None, place / "parsl"
            if cluster["remote"]:
                courier = Courier(record.repo, repo, cluster["remote"], _code(cells, local))
                scratch = Path(os.path.expandvars(cluster["scratch"])).expanduser().absolute()
                remove_left(scratch / "keys" / os.uname().nodename)
                parsl = stack.enter_context(held_folder(scratch / "keys" / os.uname().nodename, str(os.getpid())))
            show = stack.enter_context(Showing(root / EVENTS))
            engine = Engine(cluster, snapshot, parsl, courier.parcel if courier else None)
            stack.callback(engine.close)
            run = Distribution(root, snapshot, cells, sources, record, engine, cluster["retries"], show, root / LOGS, courier)
            run.done |= set(local)
            try:
                run.run()
                if len(run.done) == len(cells):
                    record.finish()
            finally:
                record.write()
                _link_all(repo, run)
            return _say_end(run, snapshot)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Refuse to be the second one of this repository."""
    lock = root / ".dvc/tmp/distribute.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(f"another run is at work on this repository ({file.read().strip()}): wait for it") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} of {os.uname().nodename}")
        file.flush()
        yield


@contextmanager
def _dvc_locked(root: Path) -> Iterator[Any]:
    """Hold DVC's lock: no other command writes dvc.lock. Its view of the repository."""
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo

    repo = Repo(str(root))
    try:
        with lock_repo(repo):
            yield repo
    except LockError as error:
        raise ValueError("a `dvc` command is at work on this repository: wait for it") from error
    finally:
        repo.close()


def _local(cells: Mapping[str, Cell]) -> list[str]:
    """The stages with outputs that DVC's cache does not hold: they run here."""
    return ["sync"] if "sync" in cells and any(cell.uncached for cell in cells.values()) else []


def _sources(cells: Mapping[str, Cell]) -> tuple[Path, ...]:
    """What the snapshot holds: the code, and what stages read and no stage that workers run makes."""
    found = {Path("stages"), *sources_of(cells), *(path for cell in cells.values() for path in cell.uncached)}
    return tuple(path for path in sorted(found) if not any(other in path.parents for other in found))


def _code(cells: Mapping[str, Cell], local: Sequence[str]) -> list[Path]:
    """What each stage gets that runs where nothing of the repository is, besides what it alone reads."""
    own = {path for name in local for path in cells[name].sources}
    found = {Path("stages"), LOCKED, *own, *(path for cell in cells.values() for path in cell.uncached)}
    return [path for path in sorted(found) if not any(other in path.parents for other in found)]


def _say_plan(cells: Mapping[str, Cell], record: Record, cluster: Mapping[str, Any], local: Sequence[str]) -> int:
    """Print where each stage would run; what depends on one that would run is said to run, though the cache may hold it."""
    labels, done = [executor["label"] for executor in cluster["executors"]], set(local)
    for name, cell in cells.items():
        if name in local:
            print(f"{name}: here")
        elif done.issuperset(cell.upstream) and (how := record.known(name)):
            done.add(name)
            print(f"{name}: {'unchanged' if how == 'unchanged' else FROM_CACHE}")
        else:
            print(f"{name}: on {label_for(labels, cell.computes)}")
    left = len(cells) - len(done)
    record.stale = False  # nothing has been made
    more = "; what depends on them may come from DVC's cache of runs" if left else ""
    print(f"{counted(left, 'stage')} of {len(cells)} would run{more}")
    return 0


def _link_all(repo: Any, run: Distribution) -> None:
    """Have the outputs of all stages that are done in the real repository, out of DVC's cache."""
    for stage in repo.index.stages:
        if is_ours(stage) and stage.name in run.done and all(out.use_cache for out in stage.outs):
            stage.checkout(allow_missing=True, force=True)


def _say_end(run: Distribution, snapshot: Path) -> int:
    counts = run.show.counts if isinstance(run.show, Showing) else {}
    cached = f", and {counts['cached']} came {FROM_CACHE}" if counts.get("cached") else ""
    print(
        f"{counted(len(run.done), 'stage')} done, of which {counts.get('unchanged', 0)} had not changed{cached}",
        file=sys.stderr,
    )
    for name, why in run.failed.items():
        print(f"{name} failed: {why}\n  its whole output: {LOGS / name.replace('@', '-')}.log", file=sys.stderr)
    if run.blocked:
        print(f"not run, because they need what failed: {', '.join(sorted(run.blocked))}", file=sys.stderr)
    if changed := moved_on(snapshot, run.root, run.sources):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        edited = f"{', '.join(changed[:3])}{more}"
        print(f"edited meanwhile, and not part of this result: {edited}; run it again for these", file=sys.stderr)
    return 1 if run.failed else 0


if __name__ == "__main__":
    main()
