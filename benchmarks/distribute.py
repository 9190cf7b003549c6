"""What it costs to run stages on workers: overhead a stage, scaling, and the planning of many stages.

    python benchmarks/distribute.py                 # minutes; prints each figure as it is known
    python benchmarks/distribute.py --seconds 30    # stages that take longer

The stages sleep, or keep a core busy, for so many seconds. The peer is `dvc repro`, which runs one stage after the other, in
the same run. As many workers are started as are asked for, whatever the machine has: stages that sleep need no core.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.pipeline.distribute.toy import ROOT as REPOSITORY  # noqa: E402
from tests.pipeline.distribute.toy import Toy, environment  # noqa: E402

BUSY = (
    f"{sys.executable} -S -c 'import time; end = time.process_time() + ${{seconds}}; "
    "[0 for _ in iter(lambda: time.process_time() < end, False)]'"
)
WITHOUT_LIMIT = """
import sys
import stages.pipeline.distribute.__main__ as program
program.core_count = lambda: 1000
program.main(sys.argv[1:])
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        plan(Path(folder) / "plan")
        for kind in ("sleep", "compute"):
            scale(Path(folder), kind, options.seconds, options.workers)


def plan(root: Path) -> None:
    """How long it takes to say what a thousand stages need."""
    toy = Toy(root, numbers=list(range(500)))
    began = time.perf_counter()
    said = run(toy, "--dry")
    print(f"planning: {said.splitlines()[-1]}: {time.perf_counter() - began:.1f} s in all", flush=True)


def scale(folder: Path, kind: str, seconds: float, workers: Sequence[int]) -> None:
    """Four stages that take some seconds, serially and on so many workers."""
    began = time.perf_counter()
    make(folder / f"{kind}-dvc", kind, seconds).dvc("repro")
    serial = time.perf_counter() - began
    print(f"{kind}: four stages of {seconds:g} s by dvc repro: {serial:.1f} s", flush=True)
    for count in workers:
        toy = make(folder / f"{kind}-{count}", kind, seconds)
        began = time.perf_counter()
        run(toy, f"cluster.executors.0.max_workers_per_node={count}", "+cluster.executors.0.cores_per_worker=0.01")
        took = time.perf_counter() - began
        done = toy.events("done")
        overhead = sum(event["overhead"] for event in done) / len(done)
        print(
            f"{kind}: on {count} workers {took:.1f} s, {serial / took:.2f} x as fast; {overhead:.2f} s of CPU a stage "
            f"for DVC and the workspace ({len(done)} stages)",
            flush=True,
        )


def make(root: Path, kind: str, seconds: float) -> Toy:
    """A repository with four such stages."""
    toy = Toy(root, numbers=[1, 2, 3, 4], seconds=seconds)
    if kind == "compute":
        pipeline = yaml.safe_load((root / "dvc.yaml").read_text())
        command = pipeline["stages"]["make"]["cmd"]
        pipeline["stages"]["make"]["cmd"] = command.replace("sleep ${seconds}", BUSY)
        (root / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    return toy


def run(toy: Toy, *words: str) -> str:
    """Run it on workers; what it says."""
    own = environment() | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", WITHOUT_LIMIT, *words], cwd=toy.root, env=own, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
