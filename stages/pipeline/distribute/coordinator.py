"""The one that sends stages to workers, notes what they made, and knows what is left."""

import os
import queue
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from stages.pipeline.distribute.cell import LOG_LINES, Outcome, Task
from stages.pipeline.distribute.engine import Engine, is_lost, label_for
from stages.pipeline.distribute.plan import Cell, descendants
from stages.pipeline.distribute.record import Record
from stages.pipeline.distribute.remote import Courier
from stages.pipeline.dvc_command import dvc_command
from stages.pipeline.outputs import check_room

SECONDS_BETWEEN_LOOKS = 0.5
PASSED_ON = ("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "TRANSFORMERS_VERBOSITY", "PYTHONWARNINGS", "DVC_NO_ANALYTICS")


class Show(Protocol):
    """What is told of all that happens."""

    def event(self, kind: str, stage: str = "", **more: Any) -> None:
        """Something happened."""
        ...

    def look(self, run: "Distribution") -> None:
        """Time passes."""
        ...


@dataclass
class Running:
    """A stage that is with a worker."""

    attempt: int
    began: float
    log: Path


@dataclass
class Distribution:
    """A run of all stages of a plan.

    Attributes:
        root: the repository.
        snapshot: the folder that the run works on.
        cells: the plan, in DVC's order.
        sources: what they read and no stage makes, relative to the repository.
        record: what is known of them.
        engine: the workers.
        retries: how often a stage is sent again whose worker was lost.
        show: is told what happens.
        logs: the folder for what stages print.
        courier: brings what stages read to workers that do not see the repository; None where they do.
    """

    root: Path
    snapshot: Path
    cells: Mapping[str, Cell]
    sources: tuple[Path, ...]
    record: Record
    engine: Engine
    retries: int
    show: Show
    logs: Path
    courier: Courier | None = None
    waiting: list[str] = field(default_factory=list)
    running: dict[str, Running] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    finished: "queue.Queue[tuple[str, Any]]" = field(default_factory=queue.Queue)

    def run(self) -> None:
        """Until nothing can be done any more."""
        self.waiting = [name for name in self.cells if name not in self.done]
        while self.waiting or self.running:
            self._send()
            if not self.running:
                break
            try:
                name, future = self.finished.get(timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                if reason := self.engine.broken():
                    raise OSError(f"cluster: {reason}: run the same command again; what is finished is kept") from None
                self.show.look(self)
                continue
            self._take(name, future)
            self.show.look(self)

    def _send(self) -> None:
        """Send what can be done to workers; what has not changed is done already, and may make more possible."""
        again = True
        while again:
            again = False
            for name in [name for name in self.waiting if self.done.issuperset(self.cells[name].upstream)]:
                self.waiting.remove(name)
                if how := self.record.known(name):
                    self.done.add(name)
                    self.show.event(how, name)
                    again = True
                else:
                    check_room()
                    self._submit(name, attempt=1)

    def _submit(self, name: str, attempt: int) -> None:
        cell, log = self.cells[name], self.logs / f"{name.replace('@', '-')}.log"
        log.unlink(missing_ok=True)
        task = Task(
            stage=name,
            snapshot=self.snapshot,
            workspaces=self.snapshot.parent / "cells",
            root=self.root,
            cache=Path(self.record.repo.cache.local_cache_dir),
            sources=self.sources,
            producers=cell.upstream,
            lock=self.record.excerpt(cell),
            log=log,
            environment={each: os.environ[each] for each in PASSED_ON if each in os.environ},
        )
        if self.courier is not None:
            carried = self.courier.carry(cell, self.sources, self.record.outputs(cell.upstream))
            task = replace(task, sources=self.courier.code, carried=carried)
        label = label_for(self.engine.labels, cell.computes)
        self.running[name] = Running(attempt, time.monotonic(), log)
        self.show.event("sent", name, attempt=attempt, executor=label)
        self.engine.submit(task, label).add_done_callback(lambda future: self.finished.put((name, future)))

    def _take(self, name: str, future: Any) -> None:
        """Note what became of a stage."""
        running = self.running.pop(name)
        error = future.exception()
        if error is not None and is_lost(error):
            why = self.engine.ended() or str(error)
            if running.attempt <= self.retries:
                self.show.event("lost", name, attempt=running.attempt, why=why)
                self._submit(name, running.attempt + 1)
                return
            times = f" {running.attempt} times" if running.attempt > 1 else ""
            self._fail(name, f"its worker was lost{times}: {why}", [])
            return
        if error is not None:
            self._fail(name, _in_a_line(error), [])
            return
        outcome: Outcome = future.result()
        if self.courier is not None:
            running.log.parent.mkdir(parents=True, exist_ok=True)
            running.log.write_text("\n".join([*outcome.log, ""]))
        if outcome.entry is None:
            self._fail(name, _last_line(outcome.log), outcome.log[-LOG_LINES:])
            return
        self.record.note(name, outcome.entry, self.courier)
        self.done.add(name)
        seconds, overhead = round(outcome.seconds, 2), round(outcome.overhead, 2)
        self.show.event("done", name, host=outcome.host, accelerator=outcome.accelerator, seconds=seconds, overhead=overhead)

    def _fail(self, name: str, why: str, log: Any) -> None:
        self.failed[name] = why
        gone = descendants(self.cells, name) & set(self.waiting)
        self.waiting = [each for each in self.waiting if each not in gone]
        self.blocked |= gone
        self.show.event("failed", name, why=why, log=list(log), blocked=sorted(gone))


def _last_line(log: Any) -> str:
    """What a stage said of its end, where it said something."""
    errors = [line for line in log if ": error: " in line] or [line for line in log if line.strip()]
    return errors[-1].strip() if errors else "it said nothing"


def _in_a_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:500] or type(error).__name__


def run_local(root: Path, names: list[str]) -> None:
    """Run stages here, whose outputs DVC's cache does not hold.

    Raises:
        ValueError: one of them failed; it has said why.
    """
    if names and subprocess.run(dvc_command("repro", "--single-item", *names), cwd=root, check=False).returncode:
        raise ValueError(f"{', '.join(names)} failed, and all others need it")
