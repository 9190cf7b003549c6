"""The courses of the trainings: read from history.csv, and written as tables for `dvc plots`. Imports no torch."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.comparison.variants import Variant

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
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        courses = {name: _course([(row["step"], row[name]) for row in rows if row[name]]) for name in MEASURES}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected numbers in the columns step, {', '.join(MEASURES)} ({error})") from error
    if not len(courses["loss"].steps):
        raise ValueError(f"{path}: holds no steps")
    return courses


def write_courses(histories: Mapping[Variant, Mapping[str, Course]], folder: Path) -> None:
    """Write <measure>.csv for each of `MEASURES`: variant, step and the value; no rows where nobody measured it."""
    for name in MEASURES:
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("variant", "step", name))
            for variant, courses in histories.items():
                points = zip(courses[name].steps.tolist(), courses[name].values.tolist(), strict=True)
                writer.writerows((variant.name, f"{step:g}", f"{value:.6g}") for step, value in points)


def _course(points: list[tuple[str, str]]) -> Course:
    table = np.array(points, dtype=float).reshape(-1, 2)
    return Course(*table[np.isfinite(table).all(axis=1)].T)
