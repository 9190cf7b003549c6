"""Remove what the pipeline made and DVC can tell of: the outputs that dvc.lock lists, and .checkpoints; DVC's cache stays.

An output that was changed since it was made is left alone, and so is everything that dvc.lock does not list.

python -m stages.pipeline.clean
"""

import shutil
from pathlib import Path

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.lockfile import LOCK, content_md5, locked_outs
from stages.pipeline.outputs import CHECKPOINTS, parts_of, remove


def clean(lock: Path = LOCK) -> None:
    """Remove the outputs below the working directory, what was left half-written beside them, and .checkpoints; a line each.

    Raises:
        ValueError: dvc.lock is there and cannot be read.
    """
    outs = {out.path: out.md5 for out in locked_outs(lock)}
    if not lock.exists():
        print(f"there is no {lock}: nothing is known to be an output, so data/ is left alone")
    for path, md5 in sorted(outs.items()):
        if path.is_absolute() or ".." in path.parts:
            continue
        if (path.exists() or path.is_symlink()) and content_md5(path) != md5:
            print(f"left    {path}: it is not what {lock} says, so it was changed since it was made")
            continue
        if path.exists() or path.is_symlink():
            remove(path)
            print(f"removed {path}")
        for leftover in parts_of(path):
            shutil.rmtree(leftover, ignore_errors=True)
        for parent in list(path.parents)[:-1]:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    if Path(CHECKPOINTS).is_dir():
        shutil.rmtree(CHECKPOINTS)
        print(f"removed {CHECKPOINTS}")


def main() -> None:
    """Do so; a dvc.lock that cannot be read ends it with one line and status 1."""
    with errors_in_one_line("clean"):
        clean()


if __name__ == "__main__":
    main()
