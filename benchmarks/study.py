"""Which way of training teaches a name best, and how sure is that: methods, adapters, learning rates and training seeds.

`make study`, or `python benchmarks/study.py [--hours H] [--workers N]` where the stages before the trainings have run, takes
the experiment that params.yaml describes and trains its subject in every way of the plan: each with as many optimizer steps of
as many images, at three learning rates, with five training seeds. Each training draws the experiment's prompts, and its images
are embedded. Then the best learning rate of each way is chosen on half of the prompts and seeds, and reported on the others.
With --rates 1 there is no choice, and all is reported.

It says its plan first, and takes hours on a CPU. Ctrl-C, a scheduler's SIGTERM, or the end of --hours, leaves what was made
in .study; the same command goes on from there. --report computes the tables from what there is, of every way that has two
trainings at each learning rate.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event

from study_cell import ROOT
from study_plan import ARMS, DATASET_EMBEDDINGS, RATES, RAW, SEEDS, Arm, Cell, Study, check_experiment
from study_tables import tables

sys.path.insert(0, str(ROOT))

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.config import read_params
from stages.pipeline.interruption import Interrupted, handled
from stages.pipeline.progress import say, track
from stages.pipeline.wording import counted


class Workers:
    """Processes that make cells, some at once, until they are stopped."""

    def __init__(self, study: Study, hours: float) -> None:
        self.study = study
        self.until = time.monotonic() + 3600 * hours
        self.stopped = Event()
        self.running: set[subprocess.Popen[bytes]] = set()

    def make(self, cell: Cell) -> str | None:
        """Make a cell; what went wrong, "" for nothing, and None where it was not begun."""
        if self.stopped.is_set() or time.monotonic() > self.until:
            return None
        folder = self.study.write_params(cell)
        command = [sys.executable, ROOT / "benchmarks" / "study_cell.py", folder.resolve()]
        threads = str(self.study.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
        with (
            (folder / "log.txt").open("ab") as log,
            subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
        ):
            self.running.add(process)
            status = process.wait()
            self.running.discard(process)
        if status and not self.stopped.is_set():
            return f"{folder / 'log.txt'}: {_last_line(folder / 'log.txt')}"
        return ""

    def stop(self) -> None:
        """Begin nothing more, and have what is under way leave a checkpoint."""
        self.stopped.set()
        for process in list(self.running):
            process.send_signal(signal.SIGTERM)


def _last_line(path: Path) -> str:
    return (path.read_text(errors="replace").splitlines() or [""])[-1]


def run(study: Study, workers: int, hours: float) -> list[str]:
    """Make what is missing; what went wrong."""
    missing = [cell for cell in study.cells() if not study.is_done(cell)]
    at_work = Workers(study, hours)
    with ThreadPoolExecutor(workers) as pool:
        futures: list[Future[str | None]] = [pool.submit(at_work.make, cell) for cell in missing]
        try:
            results = (future.result() for future in as_completed(futures))
            begun = (result for result in results if result is not None)
            total = len(study.cells())
            return [problem for problem in track(begun, "trainings", total, total - len(missing)) if problem]
        except KeyboardInterrupt:
            at_work.stop()
            raise


def say_plan(study: Study) -> None:
    """What will be trained, and how much of it is there."""
    cells = study.cells()
    done = sum(map(study.is_done, cells))
    ways = counted(len(study.arms), "way")
    rates = counted(len(study.tried), "learning rate")
    say(f"{ways} of training × {rates} × {study.seeds} training seeds, {study.steps} steps each:")
    for arm in study.arms:
        rates = ", ".join(f"{rate:g}" for rate in study.rates(arm))
        there = sum(study.is_done(cell) for cell in cells if cell.arm == arm)
        say(f"  {arm.name}: rank {study.rank(arm)}, learning rates {rates}; {there} of {len(study.tried) * study.seeds} done")
    say(f"{len(cells)} in all, with the model itself; {done} are in {study.folder}, {len(cells) - done} to do")


def chosen_arms(names: Sequence[str] | None) -> Sequence[Arm]:
    """The ways of training that are asked for, by the names of their folders; all where none is.

    Raises:
        ValueError: there is no such way.
    """
    known = {arm.folder: arm for arm in ARMS}
    if strange := [name for name in names or () if name not in known]:
        raise ValueError(f"--only: given {strange[0]!r}: there is {', '.join(known)}")
    return ARMS if names is None else [arm for folder, arm in known.items() if folder in names]


def missing_inputs(study: Study) -> Iterator[Path]:
    """What the stages before have not made yet."""
    yield from (path for path in (*study.inputs(), RAW, DATASET_EMBEDDINGS) if not path.exists())


def main() -> None:
    """Say the plan, do it, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each training (400)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"trainings of each arm and learning rate ({SEEDS})")
    parser.add_argument(
        "--rates", nargs="+", type=float, default=RATES, help="learning rates, as multiples of the experiment's"
    )
    parser.add_argument("--workers", type=int, default=2, help="trainings at once (2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (1); another number gives other bytes")
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin no training after so many")
    parser.add_argument("--only", nargs="+", metavar="WAY", help="ways of training, by the names of their folders (all)")
    parser.add_argument("--plan", action="store_true", help="say the plan and end")
    parser.add_argument("--report", action="store_true", help="train nothing; print what came of what there is")
    options = parser.parse_args()
    with errors_in_one_line("study"), handled():
        arms = chosen_arms(options.only)
        params = read_params()
        check_experiment(params)
        study = Study(params, options.steps, options.seeds, options.threads, arms, options.rates)
        if absent := next(missing_inputs(study), None):
            raise FileNotFoundError(f"{absent}: missing; make study runs the stages that make it")
        problems = []
        if not options.report:
            say_plan(study)
        if not options.plan and not options.report:
            problems = run(study, options.workers, options.hours)
        if not options.plan:
            print("\n".join(tables(study)))
        if problems:
            raise ValueError(f"{len(problems)} trainings failed; the first: {problems[0]}")


if __name__ == "__main__":
    try:
        main()
    except Interrupted as interruption:
        print("study: interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(128 + interruption.signal_number) from None
