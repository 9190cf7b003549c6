"""The course of a training, a row an optimizer step, as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.pipeline.tables import write_table

COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "held_out_loss")


@dataclass(frozen=True)
class HistoryRow:
    """An optimizer step of a training.

    Attributes:
        step: optimizer steps done, this one included.
        loss: of this step.
        learning_rate: of this step.
        grad_norm: of this step, before clipping; infinite in a step that the gradient scaler of float16 leaves out.
        held_out_loss: after it, of images that are not trained on; None where it was not measured.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    held_out_loss: float | None = None


def write_history(history: Sequence[HistoryRow], steps_per_epoch: float, path: Path) -> None:
    """Write history.csv: a row an optimizer step; held_out_loss is empty where it was not measured."""
    rows = (
        (
            row.step,
            *(f"{number:.6g}" for number in (row.step / steps_per_epoch, row.loss, row.learning_rate, row.grad_norm)),
            "" if row.held_out_loss is None else f"{row.held_out_loss:.6g}",
        )
        for row in history
    )
    write_table(path, COLUMNS, rows)
