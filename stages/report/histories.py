"""The courses of the trainings: read from history.csv, and written as tables for `dvc plots`. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.pipeline.tables import read_table, write_table
from stages.report.variants import Variant

MEASURES = ("loss", "validation_loss", "learning_rate", "grad_norm")


@dataclass(frozen=True)
class Course:
    """What one quantity did over the optimizer steps."""

    steps: np.ndarray
    values: np.ndarray


def read_history(path: Path) -> dict[str, Course]:
    """The course of each of `MEASURES`, where it was measured and is finite; the held-out loss may be empty.

    Raises:
        OSError: the file is missing.
        ValueError: it lacks a column, holds something else than numbers, or no step.
    """
    rows = read_table(path, ("step", *MEASURES))
    try:
        courses = {name: _course([(row["step"], row[name]) for row in rows if row[name]]) for name in MEASURES}
    except ValueError as error:
        raise ValueError(f"{path}: expected numbers in the columns step, {', '.join(MEASURES)} ({error})") from error
    for name in MEASURES:
        if name != "validation_loss" and not len(courses[name].steps):
            raise ValueError(f"{path}: holds no steps with a {name} that is a number")
    return courses


def write_courses(histories: Mapping[Variant, Mapping[str, Course]], folder: Path) -> None:
    """Write <measure>.csv for each of `MEASURES`: variant, step and the value; no rows where nobody measured it."""
    for name in MEASURES:
        rows = (
            (variant.name, f"{step:g}", f"{value:.6g}")
            for variant, courses in histories.items()
            for step, value in zip(courses[name].steps.tolist(), courses[name].values.tolist(), strict=True)
        )
        write_table(folder / f"{name}.csv", ("variant", "step", name), rows)


def _course(points: list[tuple[str, str]]) -> Course:
    table = np.array(points, dtype=float).reshape(-1, 2)
    return Course(*table[np.isfinite(table).all(axis=1)].T)
