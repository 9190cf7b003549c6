"""Make DVC's cache smaller: outputs that can be rebuilt go, the least recently used first, until it is as small as wanted.

    python -m stages.pipeline.gc --limit 20GB          # or make gc LIMIT=20GB
    python -m stages.pipeline.gc --limit 20GB --dry    # only say what would go, and what it would cost to rebuild

What dvc.lock lists stays, and so does all that no run of a stage has made: data of `dvc add`, and what is shared with these. A
run whose outputs are gone is forgotten: it runs again when it is asked for. What was pushed to a remote stays there.
"""

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.dvc_cache import CachedRun, object_name, object_path, objects, objects_of, runs
from stages.pipeline.lockfile import cache_folder, locked_outs
from stages.pipeline.outputs import checkpoints_folder
from stages.pipeline.timing import read_runs
from stages.pipeline.wording import counted

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def read_size(text: str) -> int:
    """Bytes, of a size such as 20GB.

    Raises:
        ValueError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", text.upper())
    if not found or found[2] not in UNITS:
        raise ValueError(f"--limit: given {text!r}: give a size, such as 20GB")
    return round(float(found[1]) * UNITS[found[2]])


def collect(cache: Path, limit: int, dry: bool, seconds_of: Mapping[str, float]) -> int:
    """Remove outputs until the cache has at most `limit` bytes, a line for each run.

    Args:
        cache: DVC's.
        limit: in bytes.
        dry: only say so.
        seconds_of: what each output took to make, by its path, where that is known.

    Returns:
        The bytes that the cache has then.
    """
    sizes = {object_name(path): path.stat().st_size for path in objects(cache)}
    size, known = sum(sizes.values()), runs(cache)
    consists = {md5: objects_of(cache, md5) for run in known for md5 in run.outs.values()}
    listed = {out.md5 for out in locked_outs() if out.md5}
    present = {name for md5 in listed for name in objects_of(cache, md5)}
    shared = Counter(name for run in known for name in _all(run, consists))
    cost, gone = 0.0, 0
    for run in known:
        names = _all(run, consists)
        if size <= limit:
            break
        if not names or listed.intersection(run.outs.values()):
            continue
        shared.subtract(names)
        freed = [name for name in names if shared[name] <= 0 and name in sizes and name not in present]
        size -= sum(sizes[name] for name in freed)
        seconds = sum(seconds_of.get(path, 0.0) for path in run.outs)
        cost, gone = cost + seconds, gone + 1
        took = f", which took {seconds:.0f} s" if seconds else ""
        megabytes = sum(sizes[name] for name in freed) / 1e6
        print(f"{'would remove' if dry else 'removed'} {', '.join(run.outs)}: {megabytes:.1f} MB{took}")
        if not dry:
            run.path.unlink(missing_ok=True)
            with suppress(OSError):  # DVC fails where a folder of runs is empty
                run.path.parent.rmdir()
            for name in freed:
                object_path(cache, name).unlink(missing_ok=True)
    print(f"{counted(gone, 'run')}, {cost:.0f} s to rebuild as far as that is known; the cache has {size / 1e6:.1f} MB then")
    if size > limit:
        print(f"that is more than {limit / 1e6:.1f} MB: the rest is what dvc.lock lists, or what no stage made")
    return size


def _all(run: CachedRun, consists: Mapping[str, set[str]]) -> set[str]:
    return {name for md5 in run.outs.values() for name in consists[md5]}


def seconds_by_output() -> dict[str, float]:
    """What the stages of dvc.lock took last, by the paths of their outputs."""
    times = read_runs(checkpoints_folder())
    return {str(out.path): times[out.stage]["seconds"] for out in locked_outs() if out.stage in times}


def main(argv: Sequence[str] | None = None) -> None:
    """Do so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", required=True, help="what the cache may have, such as 20GB")
    parser.add_argument("--dry", action="store_true", help="only say what would go")
    options = parser.parse_args(argv)
    with errors_in_one_line("gc"):
        collect(cache_folder(), read_size(options.limit), options.dry, seconds_by_output())


if __name__ == "__main__":
    main()
