"""The training loop that both LoRAs share, and its checkpoints."""

import math
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from stages.lora.adapters import trained_parameters
from stages.lora.batches import AnyBatch, Batch, seeded_number
from stages.lora.config import TrainingConfig
from stages.lora.estimates import STEPS_BEFORE_ESTIMATE, describe_time, peak_memory
from stages.lora.optimizers import make_lr_scheduler, make_optimizer
from stages.lora.processes import add_up, any_process, own_samples, process_number, wait_for_all
from stages.pipeline.interruption import Interrupted, Interruption, postponed
from stages.pipeline.progress import say, track
from stages.pipeline.seals import sealed_file

LOSS_LIMIT = 1000.0
"""A model that has learnt nothing has a loss of about 1; from one of thousands no training comes back."""


class DivergedError(ValueError):
    """The loss is no number any more, or beyond all bounds; the message says from which step on, and what to try."""

    def __init__(self, loss: float, step: int) -> None:
        super().__init__(
            f"the loss is {loss:.6g} at step {step}: try a lower learning_rate or max_grad_norm, a warm-up (lr_warmup_steps), "
            "or runtime.dtype=float32 if it is float16"
        )
        self.step = step


@dataclass(frozen=True)
class HistoryRow:
    """The course of training over the optimizer steps since the row before.

    Attributes:
        step: optimizer steps done.
        loss: mean over these steps.
        learning_rate: of the last of them.
        grad_norm: mean over these steps, before clipping.
        validation_loss: after the last of them, of images that are not trained on; None where it was not measured.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    validation_loss: float | None = None


class TrainingState:
    """All that changes while training: what a checkpoint holds."""

    def __init__(self, model: nn.Module, config: TrainingConfig, scale_gradients: bool) -> None:
        self.parameters = trained_parameters(model)
        weights = list(self.parameters.values())
        self.optimizer = make_optimizer(weights, config)
        self.lr_scheduler = make_lr_scheduler(self.optimizer, config)
        self.scaler = torch.amp.GradScaler(weights[0].device.type, enabled=scale_gradients)
        self.step = 0
        self.learning_rate = config.learning_rate
        self.history: list[HistoryRow] = []
        self.losses: list[Tensor] = []  # of the steps since the last row; numbers on the device, so that no step waits
        self.grad_norms: list[Tensor] = []

    def update(self, loss: Tensor, max_grad_norm: float | None) -> None:
        """Make an optimizer step with the gradients that are there, the loss they are of being `loss`."""
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        self.scaler.unscale_(self.optimizer)
        self.losses.append(loss)
        self.grad_norms.append(clip_grad_norm_(self.parameters.values(), max_grad_norm or math.inf))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1

    def log(self, validation_loss: float | None) -> None:
        """Close a row of the history; `DivergedError` if a loss in it is not finite."""
        losses, grad_norms = torch.stack(self.losses).tolist(), torch.stack(self.grad_norms).tolist()
        self._check_finite(losses)
        self.history.append(
            HistoryRow(
                step=self.step,
                loss=math.fsum(losses) / len(losses),
                learning_rate=self.learning_rate,
                grad_norm=_finite_mean(grad_norms),
                validation_loss=validation_loss,
            )
        )
        self.losses, self.grad_norms = [], []

    def describe_loss(self) -> str:
        """The loss of the history's last row, in words; "" before there is one."""
        return f"loss {self.history[-1].loss:.4f}" if self.history else ""

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all; `DivergedError` instead of one that is no good."""
        self.check_finite()
        with sealed_file(path) as part:
            torch.save(
                {
                    "step": self.step,
                    "weights": {name: parameter.detach() for name, parameter in self.parameters.items()},
                    "optimizer": self.optimizer.state_dict(),
                    "lr_scheduler": self.lr_scheduler.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "history": [asdict(row) for row in self.history],
                    "losses": self.losses,
                    "grad_norms": self.grad_norms,
                },
                part,
            )

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        saved: dict[str, Any] = torch.load(path, weights_only=True, map_location=next(iter(self.parameters.values())).device)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(saved["weights"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.lr_scheduler.load_state_dict(saved["lr_scheduler"])
        self.scaler.load_state_dict(saved["scaler"])
        self.step, self.losses, self.grad_norms = saved["step"], saved["losses"], saved["grad_norms"]
        self.history = [HistoryRow(**row) for row in saved["history"]]

    def check_finite(self) -> None:
        """`DivergedError` if a loss since the last row of the history is not finite."""
        if self.losses:
            self._check_finite(torch.stack(self.losses).tolist())

    def _check_finite(self, losses: list[float]) -> None:
        for step, loss in enumerate(losses, start=self.step - len(losses) + 1):
            if not loss < LOSS_LIMIT:
                raise DivergedError(loss, step)


def fit(
    model: nn.Module,
    batches: Callable[[int], AnyBatch],
    loss_fn: Callable[[Any, AnyBatch], Tensor],
    config: TrainingConfig,
    dtype: torch.dtype = torch.float32,
    checkpoint: Path | None = None,
    held_out: Sequence[Batch] = (),
    draw_samples: Callable[[int], None] | None = None,
) -> list[HistoryRow]:
    """Train the parameters of `model` that require a gradient.

    Args:
        model: on its device; changed in place.
        batches: the n-th batch of the run, n counting forward passes from 0.
        loss_fn: a scalar for a batch.
        config: the run's settings.
        dtype: of the computation; other than float32, it is autocast.
        checkpoint: a file that a run which was interrupted goes on from, to the same bytes, and that is written every
            `checkpointing_steps`; None for neither.
        held_out: batches that are never trained on; every `validation_steps` and at the end, the mean of their losses goes
            into the history.
        draw_samples: called with the step wherever `config.samples_after` says so; None for no samples.

    Returns:
        A row every `logging_steps` optimizer steps, and one for each validation and for the end.

    Raises:
        DivergedError: the loss is not finite.
        Interrupted: a signal asked for it; the step under way was finished, and the checkpoint written.
    """
    state = TrainingState(model, config, scale_gradients=dtype == torch.float16)
    speaks = process_number() == 0
    if checkpoint is not None and checkpoint.is_file():
        state.load(checkpoint)
        if speaks:
            say(f"going on after step {state.step}")
    loss_of_batch = _autocast(loss_fn, model, dtype)
    model.train()
    estimate = Estimate(state.step, config.max_train_steps, next(model.parameters()).device)
    left = range(state.step, config.max_train_steps)
    shown = (
        track(left, "training", config.max_train_steps, state.step, state.describe_loss) if speaks else (step for step in left)
    )
    with postponed() as interruption, closing(shown):
        for step in shown:
            state.update(_backward(state, batches, loss_of_batch, step, config), config.max_grad_norm)
            last = state.step == config.max_train_steps
            validates = bool(held_out) and (last or state.step % config.validation_steps == 0)
            logs = last or validates or state.step % config.logging_steps == 0
            if logs:
                state.log(mean_loss(model, held_out, loss_of_batch) if validates else None)
            if draw_samples is not None and config.samples_after(state.step):
                state.check_finite()
                draw_samples(state.step)
            stops = any_process(interruption.signal_number is not None, estimate.device, waits=logs)
            if checkpoint is not None and speaks and (stops or (not last and state.step % config.checkpointing_steps == 0)):
                state.save(checkpoint)
            if stops:
                _leave(state, interruption, checkpoint)
            if speaks:
                estimate.after(state.step)
    return state.history


def _backward(
    state: TrainingState,
    batches: Callable[[int], AnyBatch],
    loss_of_batch: Callable[[AnyBatch], Tensor],
    step: int,
    config: TrainingConfig,
) -> Tensor:
    """Add up the gradients of one optimizer step; its loss, still on the device."""
    accumulation = config.gradient_accumulation_steps
    step_loss = None
    for micro_step in range(step * accumulation, (step + 1) * accumulation):
        if config.lora_dropout:  # torch's dropout knows no generator but the global one
            torch.manual_seed(seeded_number(config.seed, "dropout", micro_step, process_number()))
        loss = loss_of_batch(own_samples(batches(micro_step))) / accumulation
        state.scaler.scale(loss).backward()
        step_loss = loss.detach() if step_loss is None else step_loss + loss.detach()
    assert step_loss is not None
    add_up([step_loss, *(parameter.grad for parameter in state.parameters.values() if parameter.grad is not None)])
    return step_loss


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Batch], loss_of_batch: Callable[[AnyBatch], Tensor]) -> float:
    """The mean loss of batches, without dropout; the model is left in training mode."""
    model.eval()
    with torch.compiler.set_stance("force_eager"):  # these batches have shapes of their own
        losses = torch.stack([loss_of_batch(batch) for batch in batches]).tolist()
    model.train()
    return math.fsum(losses) / len(losses)


def _finite_mean(values: list[float]) -> float:
    """The mean without infinities: float16 makes some in the steps that the gradient scaler skips."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.inf


def _autocast(loss_fn: Callable[[Any, AnyBatch], Tensor], model: nn.Module, dtype: torch.dtype) -> Callable[[AnyBatch], Tensor]:
    """The loss of a batch, computed on the model's device and in `dtype`."""
    device = next(model.parameters()).device

    def loss_of_batch(batch: AnyBatch) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return loss_fn(model, batch.to(device))

    return loss_of_batch


def _leave(state: TrainingState, interruption: Interruption, checkpoint: Path | None) -> NoReturn:
    """Raise `Interrupted`, once all processes are at the same point and the first has written its checkpoint."""
    wait_for_all()
    kept = "" if checkpoint is None else ", and its checkpoint written; the same command goes on from there"
    raise Interrupted(interruption.signal_number or signal.SIGTERM, f"step {state.step} is done{kept}")


class Estimate:
    """What the first steps say of the rest.

    Args:
        first: steps done before this process began.
        total: steps of the whole run.
        device: where it runs.
    """

    def __init__(self, first: int, total: int, device: torch.device) -> None:
        self.first, self.total, self.device = first, total, device
        self.started = time.perf_counter()

    def after(self, step: int) -> None:
        """Print, after some steps, how long the rest takes at their pace, and what memory they took."""
        if step == self.first + 1:
            self.started = time.perf_counter()  # without the first step, which may have compiled
        if step != self.first + STEPS_BEFORE_ESTIMATE:
            return
        pace = (time.perf_counter() - self.started) / (STEPS_BEFORE_ESTIMATE - 1)
        left = self.total - step
        say(
            f"{pace * 1000:.0f} ms a step: about {describe_time(pace * left)} for the {left} steps left; "
            f"peak memory so far {peak_memory(self.device) / 2**30:.2f} GiB"
        )


def steps_done(checkpoint: Path | None) -> int:
    """The steps that a run which was interrupted has behind it; 0 where there is no checkpoint."""
    if checkpoint is None or not checkpoint.is_file():
        return 0
    return torch.load(checkpoint, weights_only=True, mmap=True, map_location="cpu")["step"]
