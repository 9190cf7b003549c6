"""Coordinates for the report's SVG charts; what they look like is in charts.svg.jinja and series.css."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.report.histories import Course

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
    """A series of a line chart.

    Attributes:
        name: of the series.
        number: of its colour; a training's loss and its held-out loss share one.
        dashed: whether it is of held-out images.
        points: as an SVG polyline takes them.
    """

    name: str
    number: int
    dashed: bool
    points: str


@dataclass(frozen=True)
class LineChart:
    """Curves over a common pair of axes."""

    width: int
    height: int
    curves: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    @property
    def legend(self) -> list[Curve]:
        """One curve of each colour."""
        return list({curve.number: curve for curve in reversed(self.curves)}.values())[::-1]

    @property
    def dashed(self) -> bool:
        """Whether any curve is of held-out images."""
        return any(curve.dashed for curve in self.curves)


def course_chart(
    histories: Mapping[str, Mapping[str, Course]],
    measure: str,
    held_out: str | None = None,
    width: int = 560,
    height: int = 230,
) -> LineChart:
    """What a quantity did over the steps of several trainings; each point is the mean of one sixtieth of the steps.

    Args:
        histories: for each curve its name and what `read_history` gives.
        measure: the quantity.
        held_out: another one, dashed in the same colours and not averaged, where it was measured.
        width: in units of the drawing.
        height: the same.
    """
    series = [(name, number, False, _binned(courses[measure])) for number, (name, courses) in enumerate(histories.items())]
    if held_out is not None:
        courses = [(name, number, courses[held_out]) for number, (name, courses) in enumerate(histories.items())]
        series += [(name, number, True, course) for name, number, course in courses if len(course.steps)]
    xs, ys = (np.concatenate(parts) for parts in zip(*((course.steps, course.values) for *_, course in series), strict=True))
    x = Axis(0, float(xs.max()), LEFT, width - RIGHT)
    y = Axis(0, float(ys.max()) * 1.05 or 1, height - BOTTOM, TOP)
    curves = [
        Curve(name, number, dashed, " ".join(f"{x.place(a)},{y.place(b)}" for a, b in _points(course)))
        for name, number, dashed, course in series
    ]
    return LineChart(width, height, curves, x.ticks(), y.ticks())


def _points(course: Course) -> Iterator[tuple[float, float]]:
    return zip(course.steps.tolist(), course.values.tolist(), strict=True)


def _binned(course: Course) -> Course:
    parts = np.array_split(np.arange(len(course.steps)), min(BINS, len(course.steps)))
    return Course(*(np.array([values[part].mean() for part in parts]) for values in (course.steps, course.values)))


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
