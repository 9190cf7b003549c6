"""Look at every byte that is kept, and remove what is damaged, so that the next run makes it anew.

    python -m stages.pipeline.fsck    # or make fsck

DVC trusts what it has written: a byte that a disk has changed goes into every later result. Here each object of DVC's cache is
held against its name, which is the md5 of its content; an output of dvc.lock that was linked to a damaged one goes with it.
Files of .checkpoints are held against their digests. What Python has compiled of stages/ is removed, and compiled again.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.dvc_cache import object_name, objects, objects_of
from stages.pipeline.lockfile import cache_folder, content_md5, file_md5, locked_outs
from stages.pipeline.outputs import checkpoints_folder, remove
from stages.pipeline.progress import track
from stages.pipeline.seals import is_whole, seal_of
from stages.pipeline.wording import counted


def damaged_objects(cache: Path) -> Iterator[Path]:
    """The objects whose content is not what their names say."""
    for path in track(list(objects(cache)), "objects"):
        if file_md5(path) != object_name(path).removesuffix(".dir"):
            yield path


def damaged_checkpoints(folder: Path) -> Iterator[Path]:
    """The files of .checkpoints that are not what was written."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and seal_of(path).is_file() and not is_whole(path):
            yield path


def check(cache: Path, checkpoints: Path, code: Path) -> int:
    """Remove what is damaged, a line for each; how many files that were."""
    found = list(damaged_objects(cache))
    bad = {object_name(path) for path in found}
    links = {(path.stat().st_dev, path.stat().st_ino) for path in found}
    outs = [out for out in locked_outs() if out.md5 and out.path.exists() and objects_of(cache, out.md5) & bad]
    for out in outs:
        if _holds(out.path, links) or content_md5(out.path) != out.md5:
            remove(out.path)
            print(f"removed {out.path}: it was linked to a damaged object; {out.stage} makes it anew")
    for path in found:
        path.unlink()
        print(f"removed {path}: not what its name says")
    for path in damaged_checkpoints(checkpoints):
        seal_of(path).unlink()
        path.unlink()
        print(f"removed {path}: not what was written")
        bad.add(str(path))
    for folder in code.rglob("__pycache__"):
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{counted(len(bad), 'damaged file')}" + ("; `dvc repro` makes anew what is missing" if bad else ""))
    return len(bad)


def _holds(path: Path, links: set[tuple[int, int]]) -> bool:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return any((file.stat().st_dev, file.stat().st_ino) in links for file in files)


def main() -> None:
    """Do so."""
    with errors_in_one_line("fsck"):
        cache = cache_folder()
        check(cache, checkpoints_folder(), Path("stages"))


if __name__ == "__main__":
    main()
