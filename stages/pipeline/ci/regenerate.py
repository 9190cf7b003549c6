"""Regenerate the comparison in CI: fetch from the DVC remote what is missing, run what has changed, compare.

Only the LoRAs, images and embeddings of the sweep, and what a changed stage reads, are fetched; where nothing has changed, no
model is. A stage that needs a GPU refuses to run without one, and the message says which stage it is and what has changed for
it.

    python -m stages.pipeline.ci.regenerate                                         # regenerate
    python -m stages.pipeline.ci.regenerate --before origin/main --comment out.md   # and write before/after as Markdown
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stages.pipeline import lockfile
from stages.pipeline.ci.comment import write_comment
from stages.pipeline.command import errors_in_one_line
from stages.pipeline.config import load_params
from stages.pipeline.dvc_command import ask_dvc, dvc_command, run_dvc
from stages.pipeline.lockfile import LockedOut, locked_outs
from stages.pipeline.outputs import checkpoints_folder
from stages.pipeline.run_record import write_record
from stages.pipeline.variants import DATASET
from stages.report.sweep import Sweep

REPORT = Path("data/report")
OF_A_VARIANT = re.compile(r"data/(?:images/|embeddings/|(?=lora/))(.+)")
"""An output that the comparison reads, with the name of its variant; of a training, with its folder."""
RUNNING = re.compile(r"Running stage '([^']+)'")


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch, run, and write the comment if one is asked for; the status is that of `dvc repro`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="REV", help="git revision whose grid is shown beside the new one")
    parser.add_argument("--comment", type=Path, metavar="FILE", help="Markdown file to write")
    options = parser.parse_args(argv)
    lockfile.main()
    compared = sorted(compared_stages(locked_outs(), load_params("sweep", Sweep)))
    if compared and has_remote():
        run_dvc("pull", "--allow-missing", *compared)
    status, last = _repro()
    if status:
        print(f"grids: stage {last} had to run here and could not; what has changed for it:", file=sys.stderr, flush=True)
        run_dvc("status", last)
        return status
    if not REPORT.exists() and has_remote():  # nothing that it reads has changed, so it was not made here
        run_dvc("pull", "--allow-missing", str(REPORT))
    if REPORT.is_dir():
        write_record(REPORT, checkpoints_folder())
    if options.comment:
        write_comment(options.comment, REPORT, options.before)
    return 0


def compared_stages(outs: Iterable[LockedOut], sweep: Sweep) -> Iterator[str]:
    """The stages whose outputs the comparison reads, changed or not: those of the variants of the present sweep."""
    names = {DATASET, *(variant.name for variant in sweep.variants), *(f"lora/{variant.name}" for variant in sweep.trained)}
    for out in outs:
        found = OF_A_VARIANT.fullmatch(out.path.as_posix())
        if found and found[1].removesuffix(".safetensors") in names:
            yield out.stage


def has_remote() -> bool:
    """Whether a default DVC remote is configured."""
    return bool(ask_dvc("config", "core.remote"))


def _repro() -> tuple[int, str]:
    """Run `dvc repro` and print its output; returns its exit status and the name of the stage that ran last."""
    last = "?"
    command = dvc_command("repro", *(("--pull", "--allow-missing") if has_remote() else ()))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            found = RUNNING.search(line)
            last = found[1] if found else last
    return process.returncode, last


if __name__ == "__main__":
    try:
        with errors_in_one_line("grids"):
            sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
