"""How long each stage took, and what memory it had: noted beside the checkpoints, and in no output."""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RUNS = "runs.jsonl"


@contextmanager
def timed(stage: str | None, checkpoints: Path) -> Iterator[None]:
    """Note how long the block took and what memory the process had at most, if DVC runs it.

    Args:
        stage: what DVC calls it; None where DVC does not run it, and nothing is noted.
        checkpoints: the folder of the notes.
    """
    started, began = datetime.now(UTC), time.perf_counter()
    yield
    if stage is None:
        return
    seconds, kibibytes = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = kibibytes if sys.platform == "darwin" else kibibytes * 1024
    note = {"stage": stage, "started": started.isoformat(timespec="seconds"), "seconds": round(seconds, 1), "peak_memory": peak}
    checkpoints.mkdir(parents=True, exist_ok=True)
    with (checkpoints / RUNS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(note) + "\n")


def read_runs(checkpoints: Path) -> dict[str, dict[str, Any]]:
    """The last run of each stage; a line that was cut short is left out."""
    runs: dict[str, dict[str, Any]] = {}
    path = checkpoints / RUNS
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            run = json.loads(line)
            runs[run["stage"]] = run
        except (ValueError, TypeError, KeyError):
            continue
    return runs
