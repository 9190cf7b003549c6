"""Fetch from the DVC remote what another revision needs, without running any of its code: for CI, with credentials.

Reads dvc.yaml, dvc.lock and params.yaml of that revision, and this one's own. Everything that the locks list and that is small
enough is written to a folder which serves as a DVC remote without credentials. Large outputs, such as checkpoints of real size,
are left out: a CPU runner has no use for them.

python -m stages.pipeline.ci.fetch --proposed FOLDER --to FOLDER
"""

import argparse
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.pipeline.config import read_params
from stages.pipeline.dvc_command import run_dvc
from stages.pipeline.lockfile import LockedOut, gone_stages, locked_outs

FILES = ("dvc.yaml", "dvc.lock", "params.yaml")
LARGEST = 256 * 2**20
"""Bytes of the largest output that is fetched."""
REMOTE = "fetched"


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch for this revision, then for the other one. What the remote does not hold is left to be made anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proposed", type=Path, required=True, help=f"folder with the other revision's {', '.join(FILES)}")
    parser.add_argument("--to", type=Path, required=True, help="folder to write to; DVC takes it as a remote")
    options = parser.parse_args(argv)
    options.to.mkdir(parents=True, exist_ok=True)
    (options.to / "README").write_text("A DVC remote. This file is there because CI hands on no folder without files.\n")
    run_dvc("remote", "add", "--local", "--force", REMOTE, str(options.to.resolve()))
    fetch()
    for name in FILES:
        if (options.proposed / name).is_file():
            shutil.copyfile(options.proposed / name, name)
    fetch()


def fetch() -> None:
    """Fetch the small outputs of the lock file that is here, and put them into the folder."""
    small = small_stages(locked_outs())
    targets = sorted(small - gone_stages(small, read_params()))
    if targets and run_dvc("fetch", "--", *targets):
        print("fetched: not all of it could be fetched; what is missing will be made anew", file=sys.stderr)
    if targets:
        run_dvc("push", "--remote", REMOTE, "--", *targets)


def small_stages(outs: Iterable[LockedOut]) -> set[str]:
    """The stages whose outputs are in DVC's cache (those of sync are not), and not too large."""
    sizes: dict[str, int] = {}
    for out in outs:
        sizes[out.stage] = sizes.get(out.stage, 0) + out.size
    return {stage for stage, size in sizes.items() if stage != "sync" and size <= LARGEST}


if __name__ == "__main__":
    main()
