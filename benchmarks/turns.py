"""Processes that take turns: all are alive at once, one runs, so that each is timed alone and all in the same minutes.

A process tells its `Turns` of every step, and stops itself at the end of a turn; `Racer`, which started it, lets it go on.
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

LEFT_OUT = 1
"""Steps at the beginning of a turn that do not count: the others have had the caches."""


class Turns:
    """When the steps of this process ended.

    Args:
        path: a file for what was noted; written after the last step.
        steps: that there will be.
        turn: after so many of them the process stops itself.
    """

    def __init__(self, path: Path, steps: int, turn: int) -> None:
        self.path, self.steps, self.length = path, steps, turn
        self.done = 0
        self.turns: list[list[float]] = [[]]
        self.notes: dict[str, float] = {}

    def step_ended(self, *_: Any) -> None:
        """Note the time of a step's end; a turn's first time is that of its beginning, or of the first step's end."""
        self.done += 1
        times, ends = self.turns[-1], self.done % self.length == 0 or self.done == self.steps
        if ends or len(times) == LEFT_OUT:
            wait_for_device()
        times.append(time.perf_counter())
        if self.done == self.steps:
            memory = device_memory()
            self.path.write_text(json.dumps({"turns": self.turns, **self.notes, **({"memory": memory} if memory else {})}))
        elif ends:
            os.kill(os.getpid(), signal.SIGSTOP)
            self.turns.append([time.perf_counter()])


def peak_memory(usage: resource.struct_rusage) -> int:
    """The most bytes that a process held, of what `os.wait4` says; macOS counts bytes, others kibibytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def wait_for_device() -> None:
    """Until a GPU, if one is used, has done what it was given."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def device_memory() -> int:
    """The most bytes that tensors had on a GPU; 0 without one."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_initialized() else 0


@dataclass(frozen=True)
class Run:
    """What a process took.

    Attributes:
        paces: seconds of a step, of each turn but the first, if there are more.
        start: seconds before the first step and after the last.
        memory: peak, in bytes: of tensors on the GPU, else of the whole process.
        notes: what else it wrote down.
    """

    paces: Sequence[float]
    start: float
    memory: int
    notes: Mapping[str, float]


class Racer:
    """A process that stops itself at the end of each turn; a context, at whose end it is no more.

    Args:
        command: of a Python program that writes its `Turns` to times.json.
        folder: where it works.
        environment: its variables.
    """

    def __init__(self, command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> None:
        self.command, self.folder, self.environment = [sys.executable, *map(str, command)], folder, environment
        self.process: subprocess.Popen[bytes] | None = None
        self.seconds = 0.0
        self.resident = 0

    def __enter__(self) -> "Racer":
        """Nothing yet: it starts with its first turn."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End it, if it did not end by itself."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            self.process.wait()

    def take_turn(self) -> bool:
        """Run until it stops itself or ends; whether it can go on."""
        log, started = self.folder / "log", time.perf_counter()
        if self.process is None:
            with log.open("w") as file:
                self.process = subprocess.Popen(
                    self.command, cwd=self.folder, env=dict(self.environment), stdout=file, stderr=file
                )
        else:
            self.process.send_signal(signal.SIGCONT)
        _, status, usage = os.wait4(self.process.pid, os.WUNTRACED)
        self.seconds += time.perf_counter() - started
        if os.WIFSTOPPED(status):
            return True
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.resident = peak_memory(usage)
        if status:
            raise SystemExit(f"{' '.join(self.command)}\n{log.read_text()[-3000:]}")
        return False

    def run(self) -> Run:
        """What it took, once it has ended."""
        noted = json.loads((self.folder / "times.json").read_text())
        turns = noted.pop("turns")
        paces = [pace(times) for times in turns]
        counted = paces[1:] or paces
        in_steps = sum(times[-1] - times[0] for times in turns) + statistics.median(counted)
        return Run(counted, self.seconds - in_steps, noted.pop("memory", self.resident), noted)


def pace(times: Sequence[float]) -> float:
    """Seconds of a step of a turn."""
    counted = times[LEFT_OUT:] if len(times) > LEFT_OUT + 1 else times
    return (counted[-1] - counted[0]) / (len(counted) - 1)


def race(racers: Mapping[str, Racer]) -> dict[str, Run]:
    """Run all of them to their ends, in turns."""
    with ExitStack() as stack:
        waiting = {name: stack.enter_context(racer) for name, racer in racers.items()}
        while waiting:
            waiting = {name: racer for name, racer in waiting.items() if racer.take_turn()}
    return {name: racer.run() for name, racer in racers.items()}
