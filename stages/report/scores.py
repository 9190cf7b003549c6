"""Score files, and their means with confidence intervals.

The interval is over seeds: prompts are chosen by hand and stay, so that only the seeds would differ if the comparison were
repeated. It is Student's (1908), on one mean for each seed; for a difference between two variants, on the mean difference for
each seed. A bootstrap over eight seeds would be too narrow: it covers 88 instead of 95 % in simulation.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mpmath import betainc, findroot

from stages.drawing.cells import COLUMNS, Cell
from stages.pipeline.tables import read_table, write_table

METRICS = ("prompt_similarity", "reference_similarity")
CONFIDENCE = 0.95

Scores = Mapping[Cell, Mapping[str, float]]
"""For each image of a variant, by its prompt and seed, the score by each metric."""


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its 95 % confidence interval; no bounds where there is one seed only."""

    mean: float
    low: float | None
    high: float | None

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is above or below zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)


def write_scores(path: Path, scores: Scores) -> None:
    """Write a variant's scores: file_name, prompt, seed, and one column a metric."""
    rows = (
        (cell.file_name, cell.prompt, cell.seed, *(f"{values[metric]:.6f}" for metric in METRICS))
        for cell, values in scores.items()
    )
    write_table(path, (*COLUMNS, *METRICS), rows)


def read_scores(path: Path, cells: Sequence[Cell]) -> Scores:
    """Read a variant's scores.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it does not hold a number for each metric of each image.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; score the images of this variant first (stage score)")
    rows = {(row["file_name"], row["prompt"]): row for row in read_table(path, (*COLUMNS, *METRICS))}
    try:
        return {cell: {metric: _score(rows[cell.file_name, cell.prompt][metric]) for metric in METRICS} for cell in cells}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: not the scores of these images ({error}); run the stage score again") from error


def _score(text: str) -> float:
    score = float(text)
    if not math.isfinite(score):
        raise ValueError(f"a score is {text}")
    return score


def mean_interval(values: Mapping[Cell, float]) -> Interval:
    """Mean over images, with its confidence interval over seeds; each seed has the same number of images."""
    by_seed: dict[int, list[float]] = {}
    for cell, value in values.items():
        by_seed.setdefault(cell.seed, []).append(value)
    means = np.array([np.mean(of_seed) for of_seed in by_seed.values()])
    mean = float(means.mean())
    if len(means) < 2:
        return Interval(mean, None, None)
    half_width = float(student_quantile(len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means)))
    return Interval(mean, mean - half_width, mean + half_width)


def student_quantile(degrees: int) -> float:
    """The t between whose negative and itself Student's distribution lies with the probability `CONFIDENCE`.

    Not scipy's: diffusers and transformers import scipy wherever it is installed, at two seconds a process.
    """
    outside = 1 - CONFIDENCE
    return float(
        findroot(
            lambda t: betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True) - outside,
            (1e-3, 1e3),
            solver="bisect",
            maxsteps=100,
            verify=False,
        )
    )


def select(scores: Scores, metric: str, prompt_indices: Collection[int]) -> dict[Cell, float]:
    """The scores by one metric, of the prompts with these indices."""
    return {cell: values[metric] for cell, values in scores.items() if cell.prompt_index in prompt_indices}


def differences(scores: Mapping[Cell, float], baseline: Mapping[Cell, float]) -> dict[Cell, float]:
    """For each prompt and seed, the score minus the baseline's."""
    return {cell: value - baseline[cell] for cell, value in scores.items()}
