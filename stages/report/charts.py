"""Coordinates for the report's SVG charts; what they look like is in charts.svg.jinja and series.css."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.measures.statistics import Interval
from stages.report.histories import Series

WIDTH, HEIGHT = 560, 230
"""Of a line chart, in SVG units."""
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 30
"""Margins between a line chart's edge and its axes, for the labels."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in the drawing, and its label."""

    position: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear scale: values from `low` to `high` stand at positions from `start` to `end` of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def position(self, value: float) -> float:
        """Position of a value, to a tenth of a pixel."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[Tick]:
        """About `count` marks at round values."""
        step = _round_step((self.high - self.low) / count)
        digits = max(0, -math.floor(math.log10(step)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [
            Tick(self.position(index * step), f"{index * step:.{digits}f}".replace("-", "−"))
            for index in range(first, last + 1)
        ]


def fit_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """The axis that shows all values, with a twentieth of their range to spare at either end."""
    low, high = min(values), max(values)
    spare = (high - low) / 20 or abs(high) / 20 or 0.05
    return Axis(low - spare, high + spare, start, end)


@dataclass(frozen=True)
class Curve:
    """A curve of a line chart.

    Attributes:
        name: of the training.
        number: of its colour, see series.css; a training's loss and its held-out loss share one.
        dashed: whether it belongs to held-out images.
        points: "x,y x,y …" in SVG units, as a polyline takes them.
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
    x: Axis
    y: Axis

    @property
    def x_ticks(self) -> list[Tick]:
        """Marks of the steps."""
        return self.x.ticks()

    @property
    def y_ticks(self) -> list[Tick]:
        """Marks of the quantity."""
        return self.y.ticks()

    @property
    def legend(self) -> list[Curve]:
        """The first curve of each colour: the trainings, without their held-out images."""
        return list({curve.number: curve for curve in reversed(self.curves)}.values())[::-1]

    @property
    def dashed(self) -> bool:
        """Whether any curve belongs to held-out images."""
        return any(curve.dashed for curve in self.curves)


def line_chart(histories: Mapping[str, Mapping[str, Series]], measure: str, held_out: str | None = None) -> LineChart:
    """One quantity over the steps of several trainings; each point of a curve is the mean over a sixtieth of the steps.

    Args:
        histories: for each curve its name and what `read_history` gives.
        measure: the quantity, one of `histories.MEASURES`.
        held_out: the same quantity of held-out images, drawn dashed in the same colours and not averaged; a training without
            held-out images has no such curve.
    """
    drawn = [(name, number, False, history[measure].averaged()) for number, (name, history) in enumerate(histories.items())]
    if held_out is not None:
        measured = [(name, number, True, history[held_out]) for number, (name, history) in enumerate(histories.items())]
        drawn += [curve for curve in measured if len(curve[-1].steps)]
    xs, ys = (np.concatenate(parts) for parts in zip(*((series.steps, series.values) for *_, series in drawn), strict=True))
    x = Axis(0, float(xs.max()), LEFT, WIDTH - RIGHT)
    y = Axis(0, float(ys.max()) * 1.05 or 1, HEIGHT - BOTTOM, TOP)
    curves = [
        Curve(name, number, dashed, " ".join(f"{x.position(a)},{y.position(b)}" for a, b in _points(series)))
        for name, number, dashed, series in drawn
    ]
    return LineChart(WIDTH, HEIGHT, curves, x, y)


@dataclass(frozen=True)
class Mark:
    """A value with its interval.

    Attributes:
        x: position across.
        y: positions of the lower bound, the mean and the upper bound; without an interval all three are the mean's.
        text: the value, in words.
    """

    x: float
    y: tuple[float, float, float]
    text: str


@dataclass(frozen=True)
class TrendChart:
    """Values with their intervals over an axis of a sweep, a row of marks for each kind of LoRA.

    Attributes:
        title: what is measured, over what.
        rows: by the name of the kind, its colour and its marks, from left to right.
        x_ticks: the values of the sweep, evenly spaced.
        y_ticks: of the measure.
    """

    title: str
    rows: Mapping[str, tuple[str, Sequence[Mark]]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT


def trend_chart(title: str, names: Sequence[str], rows: Mapping[str, tuple[str, Sequence[Interval | None]]]) -> TrendChart:
    """Values over an axis of a sweep.

    Args:
        title: what is measured, over what.
        names: the values of the axis, rising.
        rows: by the name of the kind, its colour and a value for each of `names`; None where there is none.
    """
    found = [each for _, values in rows.values() for each in values if each is not None]
    bounds = [value for each in found for value in (each.mean, each.low, each.high) if value is not None]
    y, spread = fit_axis(bounds, HEIGHT - BOTTOM, TOP), Axis(-0.5, len(names) - 0.5, LEFT, WIDTH - RIGHT)
    aside = 8.0  # so that the intervals of two kinds do not lie over each other
    marks = {
        name: (
            colour,
            [
                Mark(
                    round(spread.position(place) + aside * (number - (len(rows) - 1) / 2), 1),
                    positions(value, y),
                    f"{name}, {names[place]}: {value.mean:.3f}",
                )
                for place, value in enumerate(values)
                if value is not None
            ],
        )
        for number, (name, (colour, values)) in enumerate(rows.items())
    }
    x_ticks = [Tick(spread.position(place), name) for place, name in enumerate(names)]
    return TrendChart(title, marks, x_ticks, y.ticks())


def positions(value: Interval, axis: Axis) -> tuple[float, float, float]:
    """Positions of the lower bound, the mean and the upper bound; without bounds all three are the mean's."""
    low, high = (value.mean if bound is None else bound for bound in (value.low, value.high))
    return axis.position(low), axis.position(value.mean), axis.position(high)


def _points(series: Series) -> Iterator[tuple[float, float]]:
    return zip(series.steps.tolist(), series.values.tolist(), strict=True)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
