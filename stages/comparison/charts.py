"""Coordinates for the report's inline SVG charts; what they look like is in report.html.jinja and report.css."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BINS = 60
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where it stands, and what it says."""

    position: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low`…`high` to `start`…`end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Position of a value, to a tenth of a pixel."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[Tick]:
        """About `count` marks at round values."""
        step = _round_step((self.high - self.low) / count)
        digits = max(0, -math.floor(math.log10(step)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [
            Tick(self.place(index * step), f"{index * step:.{digits}f}".replace("-", "−")) for index in range(first, last + 1)
        ]


def fit_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """The axis that shows all values, with a twentieth of their range to spare at either end."""
    low, high = min(values), max(values)
    spare = (high - low) / 20 or abs(high) / 20 or 0.05
    return Axis(low - spare, high + spare, start, end)


@dataclass(frozen=True)
class Curve:
    """A series of a line chart: its name, and its points as an SVG polyline takes them."""

    name: str
    points: str


@dataclass(frozen=True)
class LineChart:
    """Curves over a common pair of axes."""

    width: int
    height: int
    curves: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def loss_chart(histories: dict[str, Path], width: int = 560, height: int = 230) -> LineChart:
    """Training losses over the steps, from history.csv files; each point is the mean of one sixtieth of the steps.

    Args:
        histories: for each curve its name and its file with the columns step and loss.
        width: in units of the drawing.
        height: the same.

    Raises:
        OSError: a file is missing.
        ValueError: a file has no such columns, or no rows.
    """
    series = {name: _binned(*read_history(path)) for name, path in histories.items()}
    xs, ys = (np.concatenate([points[axis] for points in series.values()]) for axis in (0, 1))
    x = Axis(0, float(xs.max()), LEFT, width - RIGHT)
    y = Axis(0, float(ys.max()) * 1.05 or 1, height - BOTTOM, TOP)
    curves = [
        Curve(name, " ".join(f"{x.place(a)},{y.place(b)}" for a, b in zip(*points, strict=True)))
        for name, points in series.items()
    ]
    return LineChart(width, height, curves, x.ticks(), y.ticks())


def read_history(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of a training."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        steps, losses = (np.array([float(row[column]) for row in rows]) for column in ("step", "loss"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected numbers in the columns step and loss ({error})") from error
    if not len(steps):
        raise ValueError(f"{path}: holds no steps")
    return steps, losses


def _binned(steps: np.ndarray, losses: np.ndarray) -> tuple[list[float], list[float]]:
    parts = np.array_split(np.arange(len(steps)), min(BINS, len(steps)))
    return [float(steps[part].mean()) for part in parts], [float(losses[part].mean()) for part in parts]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
