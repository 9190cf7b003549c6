"""How a run looks: a live table on a terminal, plain lines elsewhere, and a file of events."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stages.pipeline.distribute.coordinator import Distribution
from stages.pipeline.wording import counted

SECONDS_BETWEEN_LINES = 10.0
TAIL_BYTES = 4096


class Showing:
    """Tells of a run; a context.

    Args:
        events: a file for what happens, a JSON object a line.
    """

    def __init__(self, events: Path) -> None:
        events.parent.mkdir(parents=True, exist_ok=True)
        self.file = events.open("w", encoding="utf-8")
        self.began = self.last = time.monotonic()
        self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True) if sys.stderr.isatty() else None
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "Showing":
        """Begin."""
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End."""
        if self.live is not None:
            self.live.stop()
        self.file.close()

    def event(self, kind: str, stage: str = "", **more: Any) -> None:
        """Something happened: "unchanged", "cached", "sent", "done", "lost" or "failed" for a stage, others for the run."""
        self.counts[kind] += 1
        at = round(time.monotonic() - self.began, 2)
        self.file.write(json.dumps({"at": at, "event": kind, "stage": stage, **more}) + "\n")
        self.file.flush()
        if kind == "done":
            self.say(f"{stage}: done in {more['seconds']:.0f} s{_where(more)}")
        elif kind == "lost":
            self.say(f"{stage}: lost ({more['why']}); sent again")
        elif kind == "failed":
            blocked = f"; {counted(len(more['blocked']), 'stage')} that need it are not run" if more["blocked"] else ""
            self.say(f"{stage}: failed: {more['why']}{blocked}")

    def say(self, text: str) -> None:
        """A line that stays."""
        (self.live.console.print if self.live is not None else _print)(text)

    def look(self, run: Distribution) -> None:
        """Show what is going on."""
        now = time.monotonic()
        if self.live is not None:
            self.live.update(_table(run), refresh=True)
        elif now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            self.say(summary(run))


def summary(run: Distribution) -> str:
    """How many stages are at which point, and what the longest of them says."""
    begun = [name for name, running in run.running.items() if running.log.exists()]
    seen = [f"{len(run.running)} sent"] if run.courier else [f"{len(begun)} running"]  # their logs come with their ends
    numbers = [
        f"{len(run.done)}/{len(run.cells)} stages done",
        *seen,
        f"{len(run.waiting) + (0 if run.courier else len(run.running) - len(begun))} waiting",
        *([f"{len(run.failed)} failed"] if run.failed else []),
        *([f"{len(run.blocked)} blocked"] if run.blocked else []),
    ]
    says = [f"{name}: {line}" for name in begun if (line := last_line(run.running[name].log))][:3]
    return "; ".join([", ".join(numbers), *says])


def last_line(log: Path) -> str:
    """What a stage printed last: its step, its loss, the time that is left; "" before it says anything."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line and not line.startswith((">", "Running stage"))), "")


def _table(run: Distribution) -> Table:
    table = Table(title=summary(run).partition(";")[0], title_justify="left", expand=True)
    table.add_column("stage", no_wrap=True)
    table.add_column("seconds", justify="right")
    table.add_column("says", ratio=1, no_wrap=True, overflow="ellipsis")
    for name, running in run.running.items():
        if running.log.exists():
            again = f" (attempt {running.attempt})" if running.attempt > 1 else ""
            table.add_row(name, f"{time.monotonic() - running.began:.0f}", last_line(running.log) + again)
    return table


def _where(more: dict[str, Any]) -> str:
    accelerator = f", GPU {more['accelerator']}" if more.get("accelerator") else ""
    return f" on {more['host']}{accelerator}"


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
