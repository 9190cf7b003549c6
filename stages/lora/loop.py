"""The training loop that both LoRAs share, and its checkpoints."""

import math
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from stages.lora.adapters import trained_parameters
from stages.lora.batches import AnyBatch, Batch, seeded_number
from stages.lora.config import TrainingConfig
from stages.lora.estimates import Estimate
from stages.lora.history import HistoryRow
from stages.lora.optimizers import make_lr_scheduler, make_optimizer, records
from stages.lora.processes import add_up, any_process, own_samples, process_number, wait_for_all
from stages.lora.recorded_step import RecordedGradients, RecordedUpdate
from stages.lora.run import Run
from stages.pipeline.interruption import Interrupted, Interruption, postponed
from stages.pipeline.progress import say, track
from stages.pipeline.recorded import OneByOne, Recorder, make_recorder
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


class TrainingState:
    """All that changes while training: what a checkpoint holds."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, scale_gradients: bool, recorder: Recorder | None = None
    ) -> None:
        self.parameters = trained_parameters(model)
        weights = list(self.parameters.values())
        self.max_grad_norm, self.recorder = config.max_grad_norm, recorder
        # On a GPU an update that is not recorded is rounded like one that is: in half precision, trainings drift apart else.
        updates = OneByOne() if recorder is None and weights[0].device.type == "cuda" else recorder
        updates = updates if records(config, scale_gradients) else None
        self.optimizer = make_optimizer(model, config, capturable=updates is not None)
        self.average = None if config.ema_decay is None else EMAModel(weights, decay=config.ema_decay, foreach=True)
        self._train()
        self.lr_scheduler = make_lr_scheduler(self.optimizer, config)
        self.scaler = torch.amp.GradScaler(weights[0].device.type, enabled=scale_gradients)
        self.step = 0
        self.history: list[HistoryRow] = []
        # Of the steps since the history's last row: learning rate, loss and norm, still on the device, so that no step waits.
        self.pending: list[tuple[float, Tensor, Tensor]] = []
        self._follow_gradients = self._follow
        if updates is not None:
            self._follow_gradients = RecordedUpdate(self._follow, self.optimizer, updates, weights[0].device)

    def update(self, loss: Tensor) -> None:
        """Make an optimizer step with the gradients that `backward` has left.

        Args:
            loss: whose gradients they are, a scalar; it becomes part of the history.
        """
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.pending.append((learning_rate, loss, self._follow_gradients()))
        self.lr_scheduler.step()
        if self.average is not None:
            self.average.step(self.parameters.values())
        self.step += 1

    @contextmanager
    def averaged(self) -> Generator[None, None, None]:
        """Within, the weights are their averages over the steps, where these are kept, by this or by the optimizer itself."""
        averages = self.average is not None or hasattr(self.optimizer, "eval")
        before = [parameter.detach().clone() for parameter in self.parameters.values()] if averages else []
        self.take_average()
        yield
        self._train()
        with torch.no_grad():
            for parameter, weight in zip(self.parameters.values(), before, strict=averages):
                parameter.copy_(weight)

    def take_average(self) -> None:
        """Make the weights their averages over the steps, where these are kept."""
        if hasattr(self.optimizer, "eval"):  # of the package schedulefree, say
            self.optimizer.eval()
        if self.average is not None:
            with torch.no_grad():
                self.average.copy_to(self.parameters.values())

    def _train(self) -> None:
        """Tell an optimizer that averages by itself that what follows is training."""
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()

    def _follow(self) -> Tensor:
        """Clip the gradients, follow them, and let go of them; their norm."""
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.parameters.values(), self.max_grad_norm or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=self.recorder is None)  # a recording adds to the same memory each time
        return norm

    def log(self, held_out_loss: float | None = None) -> None:
        """Bring the history up to date; `DivergedError` if a loss is not finite."""
        if self.pending:
            rates, losses, norms = zip(*self.pending, strict=True)
            numbers = torch.stack([torch.stack(losses), torch.stack(norms)]).tolist()
            first = self.step - len(rates) + 1
            for step, (rate, loss, norm) in enumerate(zip(rates, *numbers, strict=True), start=first):
                if not loss < LOSS_LIMIT:
                    raise DivergedError(loss, step)
                self.history.append(HistoryRow(step, loss, rate, norm))
            self.pending = []
        if held_out_loss is not None:
            self.history[-1] = replace(self.history[-1], held_out_loss=held_out_loss)

    def describe_loss(self) -> str:
        """The loss of the history's last row, in words; "" before there is one."""
        return f"loss {self.history[-1].loss:.4f}" if self.history else ""

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all; `DivergedError` instead of one that is no good."""
        self.log()
        with sealed_file(path) as part:
            torch.save(
                {
                    "step": self.step,
                    "weights": {name: parameter.detach() for name, parameter in self.parameters.items()},
                    "optimizer": self.optimizer.state_dict(),
                    "lr_scheduler": self.lr_scheduler.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "average": None if self.average is None else self.average.state_dict(),
                    "history": [asdict(row) for row in self.history],
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
        self._train()
        self.lr_scheduler.load_state_dict(saved["lr_scheduler"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.step = saved["step"]
        self.history = [HistoryRow(**row) for row in saved["history"]]


def fit(
    run: Run,
    model: nn.Module,
    batches: Callable[[int], AnyBatch],
    loss_fn: Callable[[Any, AnyBatch], Tensor],
    held_out: Sequence[Batch] = (),
    after_step: Callable[[int], None] | None = None,
) -> list[HistoryRow]:
    """Train the parameters of `model` that require a gradient.

    Args:
        run: its settings, and the folder of the checkpoint: a run that was interrupted goes on from there, to the same bytes.
        model: on its device; changed in place.
        batches: the n-th batch of the run, n counting forward passes from 0.
        loss_fn: a scalar for a batch.
        held_out: batches that are never trained on; the mean of their losses goes into the history.
        after_step: called with the number of steps done where previews are drawn, or what is trained is kept.

    Returns:
        A row an optimizer step.

    Raises:
        DivergedError: the loss is not finite.
        Interrupted: a signal asked for it; the step under way was finished, and the checkpoint written.
    """
    config, checkpoint, speaks = run.config, run.checkpoint, process_number() == 0
    recorder = make_recorder(run.cuda_graphs and config.can_be_recorded, run.device)
    state = TrainingState(model, config, run.dtype == torch.float16, recorder)
    if checkpoint is not None and checkpoint.is_file():
        state.load(checkpoint)
        if speaks:
            say(f"going on after step {state.step}")
    loss_of_batch = _autocast(run, loss_fn, model)
    gradients = _gradients(state, loss_of_batch, config.gradient_accumulation_steps)
    if recorder is not None:
        gradients = RecordedGradients(gradients, state.parameters, recorder, run.device)
    model.train()
    estimate = Estimate(state.step, config.max_train_steps, run.device)
    left = range(state.step, config.max_train_steps)
    held_out_loss = partial(mean_loss, model, held_out, loss_of_batch) if held_out else None
    shown = track(left, "training", config.max_train_steps, state.step, state.describe_loss) if speaks else _plain(left)
    with postponed() as interruption, closing(shown):
        for step in shown:
            state.update(_backward(state, batches, gradients, step, run))
            logs = _look(run, state, held_out_loss, after_step)
            stops = any_process(interruption.signal_number is not None, run.device, waits=logs)
            if checkpoint is not None and speaks and (stops or _saves(run, state.step)):
                state.save(checkpoint)
            if stops:
                _leave(state, interruption, checkpoint)
            if speaks:
                estimate.after(state.step)
    state.take_average()
    return state.history


def _look(
    run: Run, state: TrainingState, held_out_loss: Callable[[], float] | None, after_step: Callable[[int], None] | None
) -> bool:
    """After a step, look at the loss, measure the held-out loss, draw previews and keep what is trained, each where it is due.

    Returns:
        Whether the loss was looked at, for which the process waits for its device.
    """
    config, step = run.config, state.step
    measures = held_out_loss is not None and config.measures_held_out(step)
    shows = after_step is not None and (config.draws_previews(step) or config.keeps(step))
    logs = measures or shows or step == config.max_train_steps or step % run.housekeeping.logging_steps == 0
    if logs:
        state.log()
    if measures or shows:
        with state.averaged():
            if held_out_loss is not None and measures:
                state.log(held_out_loss())
            if after_step is not None and shows:
                after_step(step)
    return logs


def _saves(run: Run, step: int) -> bool:
    """Whether a checkpoint is due; at the end there is the result."""
    return step < run.config.max_train_steps and step % run.housekeeping.checkpointing_steps == 0


def _plain(steps: range) -> Generator[int, None, None]:
    yield from steps


def _gradients(
    state: TrainingState, loss_of_batch: Callable[[AnyBatch], Tensor], accumulation: int
) -> Callable[[AnyBatch], Tensor]:
    """What adds the gradients of a batch to those that are there, and gives its share in the step's loss."""

    def gradients(batch: AnyBatch) -> Tensor:
        loss = loss_of_batch(batch) / accumulation
        state.scaler.scale(loss).backward()
        return loss.detach()

    return gradients


def _backward(
    state: TrainingState,
    batches: Callable[[int], AnyBatch],
    gradients: Callable[[AnyBatch], Tensor],
    step: int,
    run: Run,
) -> Tensor:
    """Add up the gradients of one optimizer step; its loss, still on the device."""
    config, accumulation = run.config, run.config.gradient_accumulation_steps
    step_loss = None
    for micro_step in range(step * accumulation, (step + 1) * accumulation):
        if config.lora_dropout:  # torch's dropout knows no generator but the global one
            torch.manual_seed(seeded_number(run.seed, "dropout", micro_step, process_number()))
        loss = gradients(own_samples(batches(micro_step)))
        step_loss = loss if step_loss is None else step_loss + loss
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


def _autocast(run: Run, loss_fn: Callable[[Any, AnyBatch], Tensor], model: nn.Module) -> Callable[[AnyBatch], Tensor]:
    """The loss of a batch, computed on the run's device and in its dtype."""

    def loss_of_batch(batch: AnyBatch) -> Tensor:
        with run.autocast():
            return loss_fn(model, batch.to(run.device))

    return loss_of_batch


def _leave(state: TrainingState, interruption: Interruption, checkpoint: Path | None) -> NoReturn:
    """Raise `Interrupted`, once all processes are at the same point and the first has written its checkpoint."""
    wait_for_all()
    kept = "" if checkpoint is None else ", and its checkpoint written; the same command goes on from there"
    raise Interrupted(interruption.signal_number or signal.SIGTERM, f"step {state.step} is done{kept}")


def steps_done(checkpoint: Path | None) -> int:
    """The steps that a run which was interrupted has behind it; 0 where there is no checkpoint."""
    if checkpoint is None or not checkpoint.is_file():
        return 0
    return torch.load(checkpoint, weights_only=True, mmap=True, map_location="cpu")["step"]
