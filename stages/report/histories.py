"""The histories of the trainings: read from history.csv, and written as tables for `dvc plots`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.pipeline.tables import read_table, write_table
from stages.pipeline.variants import Variant

HELD_OUT_LOSS = "held_out_loss"
MEASURES = ("loss", HELD_OUT_LOSS, "learning_rate", "grad_norm")
"""The quantities of a training, each a column of its history."""
PARTS = 60
"""Points of a curve."""


@dataclass(frozen=True)
class Series:
    """One quantity of a training: `values[i]` was measured at the optimizer step `steps[i]`; both have the shape (n,)."""

    steps: np.ndarray
    values: np.ndarray

    def averaged(self) -> "Series":
        """The means over `PARTS` equal parts of the steps: single steps scatter too much to be read."""
        parts = np.array_split(np.arange(len(self.steps)), max(1, min(PARTS, len(self.steps))))
        return Series(*(np.array([values[part].mean() for part in parts if len(part)]) for values in (self.steps, self.values)))


def read_history(path: Path) -> dict[str, Series]:
    """Read each of `MEASURES` at the steps where it was measured and is finite; the held-out loss may have no step at all.

    Raises:
        OSError: the file is missing.
        ValueError: a column is missing, holds anything but numbers, or holds no number at all.
    """
    rows = read_table(path, ("step", *MEASURES))
    try:
        history = {name: _series([(row["step"], row[name]) for row in rows if row[name]]) for name in MEASURES}
    except ValueError as error:
        raise ValueError(f"{path}: expected numbers in the columns step, {', '.join(MEASURES)} ({error})") from error
    for name in MEASURES:
        if name != HELD_OUT_LOSS and not len(history[name].steps):
            raise ValueError(f"{path}: holds no step whose {name} is a number")
    return history


def write_histories(histories: Mapping[Variant, Mapping[str, Series]], folder: Path) -> None:
    """Write <measure>.csv for each of `MEASURES`: variant, step and value; a table without rows where it was never measured.

    All but the held-out loss, which is measured now and then, are averaged as in the page's charts.
    """
    for name in MEASURES:
        series = {
            variant: history[name] if name == HELD_OUT_LOSS else history[name].averaged()
            for variant, history in histories.items()
        }
        rows = (
            (variant.name, f"{step:g}", f"{value:.6g}")
            for variant, each in series.items()
            for step, value in zip(each.steps.tolist(), each.values.tolist(), strict=True)
        )
        write_table(folder / f"{name}.csv", ("variant", "step", name), rows)


def _series(points: list[tuple[str, str]]) -> Series:
    table = np.array(points, dtype=float).reshape(-1, 2)
    return Series(*table[np.isfinite(table).all(axis=1)].T)
