"""One training loop for every small model: a budget in steps or minutes, cosine rate, EMA, and checkpoints to resume from."""

import argparse
import csv
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stages.mini.training.muon import MuonAdamW
from stages.pipeline.outputs import atomic_file
from stages.pipeline.progress import track

WARMUP = 0.03
SECONDS_BETWEEN_CHECKPOINTS = 60.0
STEPS_BETWEEN_ROWS = 25
# Processes train apart for this many steps and then average their weights (local SGD: Stich 2018, arXiv:1805.09767): summing
# gradients at every step costs two CPU processes as much time as it saves.
STEPS_BETWEEN_AVERAGES = 10
FIELDS = ("step", "seconds", "loss", "progress")


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps, or of minutes summed over all runs; exactly one of the two."""

    steps: int | None
    minutes: float | None

    def __post_init__(self) -> None:
        """Refuse none and both."""
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either --steps or --minutes")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is used, from 0 to 1."""
        used = step / self.steps if self.steps is not None else seconds / (60 * (self.minutes or 1))
        return min(used, 1.0)


@dataclass(frozen=True)
class Plan:
    """What `fit` needs beside the model and its loss; `learning_rate` is the peak after the warm-up."""

    label: str
    budget: Budget
    learning_rate: float
    weight_decay: float
    ema_decay: float
    checkpoint: Path


class Averaged:
    """Exponential moving average of a model's parameters, catching up faster at the start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.shadow = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the parameters as they are after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self.shadow, self.parameters, step)

    @torch.no_grad()
    def store(self) -> None:
        """Write the average into the model."""
        for parameter, shadow in zip(self.parameters, self.shadow, strict=True):
            parameter.copy_(shadow)


def rate_at(progress: float, peak: float) -> float:
    """Linear warm-up over the first 3 %, then a cosine down to zero."""
    if progress < WARMUP:
        return peak * (0.02 + 0.98 * progress / WARMUP)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def fit(model: nn.Module, loss_of: Callable[[int], Tensor], plan: Plan) -> int:
    """Train the model's trainable parameters and leave their average in it; gives the number of steps.

    `loss_of(step)` must draw its batch and noise from the step's number alone, so that a resumed run goes on as it was.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = MuonAdamW(model, plan.learning_rate, plan.weight_decay)
    average = Averaged(model, plan.ema_decay)
    state = _restore(plan.checkpoint, model, optimizer, average)
    rows: list[tuple[int, float, float, float]] = state["rows"]
    start = saved = time.monotonic() - state["seconds"]
    step, recent = state["step"], []
    steps = _steps(plan.budget, state["step"], start)
    for step, progress in track(steps, plan.label, plan.budget.steps, state["step"]) if is_first() else steps:
        seconds = time.monotonic() - start
        recent.append(_step(optimizer, loss_of(step), parameters, rate_at(progress, plan.learning_rate)))
        if dist.is_initialized() and step % STEPS_BETWEEN_AVERAGES == 0:
            _average_parameters(parameters)
        average.update(step)
        if (step + 1) % STEPS_BETWEEN_ROWS == 0:
            rows.append((step + 1, round(seconds, 1), round(sum(recent) / len(recent), 6), progress))
            recent.clear()
        if is_first() and time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
            _save(plan.checkpoint, model, optimizer, average, _position(step + 1, start, rows))
            saved = time.monotonic()
    if is_first():
        _save(plan.checkpoint, model, optimizer, average, _position(step + 1, start, rows))
        _write_history(plan.checkpoint.with_suffix(".csv"), rows)
    average.store()
    return step + 1


def forget(checkpoint: Path) -> None:
    """Delete a checkpoint once the model is written: the next run, of other code or drawings, then begins afresh."""
    checkpoint.unlink(missing_ok=True)


def generator_of(seed: int, step: int) -> torch.Generator:
    """A generator that depends on the seed, the step's number and the process's rank alone."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step * processes() + _rank())


def is_first() -> bool:
    """Whether this process is the one that prints and saves; true without torchrun."""
    return _rank() == 0


class FloatGroupNorm(nn.GroupNorm):
    """Group norm computed in float32 under autocast: on a CPU its bfloat16 backward pass is twice as slow."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise in float32; the result has the input's type."""
        normalised = nn.functional.group_norm(input.float(), self.num_groups, self.weight, self.bias, self.eps)
        return normalised.to(input.dtype)


def quicken(model: nn.Module) -> None:
    """Give the group norms their float32 form; parameters and their names stay as they are."""
    for module in model.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = FloatGroupNorm


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def arguments_of(prog: str, description: str | None, minutes: float) -> argparse.ArgumentParser:
    """The options that all trainings share; `minutes` is what is used where neither budget is given."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--work", type=Path, required=True, help="folder with the drawings, for checkpoints and results")
    parser.add_argument("--minutes", type=float, help=f"train this long in all ({minutes:g} without --steps)")
    parser.add_argument("--steps", type=int, help="train this many steps, instead of --minutes")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; torchrun with one each is quicker than two")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=_usual_dtype(), help="type of the arithmetic")
    parser.add_argument("--tiny", action="store_true", help="a very small model, for tests")
    return parser


def budget_of(options: argparse.Namespace, minutes: float) -> Budget:
    """The budget that the options ask for."""
    return Budget(options.steps, options.minutes if options.minutes or options.steps else minutes)


def begin(options: argparse.Namespace) -> torch.device:
    """Set threads and seed; give the device. Under torchrun, join the other processes."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return torch.device(options.device)


def autocast(options: argparse.Namespace) -> torch.autocast:
    """The context to compute one step's loss in: mixed bfloat16 if the options say so.

    One context for many steps would go on using the weights that it converted in the first.
    """
    device = torch.device(options.device).type
    return torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16")


def _usual_dtype() -> str:
    quick = torch.cuda.is_available() or bool(torch.cpu.get_capabilities().get("amx_tile"))
    return "bfloat16" if quick else "float32"


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _steps(budget: Budget, first: int, start: float) -> Iterator[tuple[int, float]]:
    agreed = 0.0
    for step in count(first):
        progress = budget.progress(step, time.monotonic() - start)
        if budget.steps is None and dist.is_initialized():
            # Clocks differ: all processes must end at the same step.
            agreed = _agree(progress) if step % STEPS_BETWEEN_AVERAGES == 0 else agreed
            progress = min(progress, 0.999) if agreed < 1 else agreed
        if progress >= 1:
            return
        yield step, progress


def _agree(progress: float) -> float:
    furthest = torch.tensor(progress, dtype=torch.float64)
    dist.all_reduce(furthest, dist.ReduceOp.MAX)
    return furthest.item()


def _step(optimizer: MuonAdamW, loss: Tensor, parameters: Sequence[nn.Parameter], rate: float) -> float:
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step(rate)
    return loss.item()


@torch.no_grad()
def _average_parameters(parameters: Sequence[nn.Parameter]) -> None:
    together = torch.cat([parameter.reshape(-1) for parameter in parameters])
    dist.all_reduce(together)
    together /= processes()
    parts = together.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view(parameter.shape))


def _position(step: int, start: float, rows: list[tuple[int, float, float, float]]) -> dict[str, Any]:
    return {"step": step, "seconds": time.monotonic() - start, "rows": rows}


def _save(path: Path, model: nn.Module, optimizer: MuonAdamW, average: Averaged, position: dict[str, Any]) -> None:
    with atomic_file(path) as part:
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.shadow, **position}, part
        )


def _restore(path: Path, model: nn.Module, optimizer: MuonAdamW, average: Averaged) -> dict[str, Any]:
    if not path.exists():
        return {"step": 0, "seconds": 0.0, "rows": []}
    state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.shadow = state["average"]
    return state


def _write_history(path: Path, rows: Sequence[tuple[int, float, float, float]]) -> None:
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows(rows)
