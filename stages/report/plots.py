"""What the charts of the report show: forests, the trade-off, trends over a sweep, the course of the trainings."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.measures.comparing import BY_KEY, mean_over
from stages.measures.statistics import Interval
from stages.pipeline.variants import Kind, Variant, in_full
from stages.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    LineChart,
    TrendChart,
    fit_axis,
    line_chart,
    positions,
    trend_chart,
)
from stages.report.contents import COLOURS, Comparison, Preview
from stages.report.findings import signed
from stages.report.histories import HELD_OUT_LOSS
from stages.report.results import Results

METRIC_NAMES = {
    "dino_similarity": "Likeness to the subject (DINO)",
    "clip_similarity": "Likeness to the subject (CLIP-I)",
    "prompt_similarity": "Likeness to the prompt (CLIP-T)",
}
"""What the forest plots show."""
WANTED_ON_OTHER_PROMPTS = {
    "dino_similarity": "should stay where it is without a LoRA; higher is harm, it leaks",
    "clip_similarity": "should stay where it is without a LoRA; higher is harm, it leaks",
    "prompt_similarity": "higher is better; lower than without a LoRA is harm",
}
"""For each metric, what it should do on prompts that do not ask for what the LoRAs learnt."""
LARGEST_MARK = 11.0
"""Radius of the mark of the largest LoRA, in SVG units."""
TREND_MEASURES = ("subject_fidelity", "leak")
"""What is drawn over the axes of a sweep, beside the primary measure."""


def forest(comparison: Comparison, metric: str) -> dict[str, Any]:
    """A forest plot: every arm's mean with its interval, on the subject prompts and on the others, over one axis.

    Positions are in percent of the plot's width. `harm` says what a LoRA made worse by this metric; each text begins with the
    mark that it belongs to, ● for the subject prompts and ○ for the others.
    """
    results = comparison.results
    rows = [
        {
            "name": comparison.config.names.of(first.kind),
            "detail": comparison.namer.arm(first).partition(", ")[2],
            "colour": COLOURS[first.kind],
            "subject": _mark(results, first, metric, results.asks),
            "other": _mark(results, first, metric, ~results.asks),
            "harm": _harm(comparison, first, metric),
        }
        for first in results.arms
    ]
    marks = [mark for row in rows for mark in (row["subject"], row["other"]) if mark is not None]
    axis = fit_axis([value for mark in marks for value in (mark.mean, mark.low, mark.high) if value is not None], 0, 100)
    drawn = [
        row | {"positions": {name: row[name] and positions(row[name], axis) for name in ("subject", "other")}} for row in rows
    ]
    return {"metric": metric, "rows": drawn, "ticks": axis.ticks(4), "legend": forest_legend(comparison, metric)}


def _mark(results: Results, first: Variant, metric: str, chosen: NDArray[np.bool_]) -> Interval | None:
    if not chosen.any():
        return None
    return mean_over(results.values(first, metric)[:, chosen])


def _harm(comparison: Comparison, first: Variant, metric: str) -> list[str]:
    if first.rank is None:
        return []
    marks = {"subject": "●", "other": "○"}
    return [
        f"{marks[contrast.measure.asked]} {signed(contrast.interval.mean)} harm"
        for contrast in comparison.findings.of(first, first.merge).values()
        if contrast.measure.metric == metric and contrast.measure.asked in marks and contrast.verdict == "worse"
    ]


def forest_legend(comparison: Comparison, metric: str) -> list[str]:
    """What the marks of the forest plot stand for, and which direction is wanted; a line each."""
    subject, others = len(comparison.subject_prompts), len(comparison.other_prompts)
    asked = "the prompt that asks" if subject == 1 else f"the {subject} prompts that ask"
    lines = [f"● {asked} for what the LoRAs learnt: higher is better"]
    if others:
        other = "the other prompt" if others == 1 else f"the {others} other prompts"
        lines.append(f"○ {other}: {WANTED_ON_OTHER_PROMPTS[metric]}")
    lines.append(f"Lines: 95 % intervals over the {units(comparison)}")
    return lines


def units(comparison: Comparison) -> str:
    """What intervals are over."""
    return "trainings" if len(comparison.results.sweep.seed) > 1 else "prompts"


def trade_off(comparison: Comparison) -> dict[str, Any] | None:
    """Likeness to the subject where it is asked for, against likeness where it is not; None without other prompts.

    Each arm is a mark with its intervals, in SVG units: the best is at the lower right. The larger a LoRA's file, the larger
    its mark; an arm without a LoRA has none. Where marks look alike, all have numbers, which the legend explains.
    """
    results = comparison.results
    if not comparison.other_prompts:
        return None
    points = {
        first: (_mark(results, first, "dino_similarity", results.asks), _mark(results, first, "dino_similarity", ~results.asks))
        for first in results.arms
    }
    spans = [
        [value for mark in marks if mark for value in (mark.mean, mark.low, mark.high) if value is not None]
        for marks in zip(*points.values(), strict=True)
    ]
    x, y = fit_axis(spans[0], LEFT, WIDTH - RIGHT), fit_axis(spans[1], HEIGHT - BOTTOM, TOP)
    marks = [
        {
            "name": comparison.namer.arm(first),
            "colour": COLOURS[first.kind],
            "x": positions(across, x),
            "y": positions(down, y),
            "found": (across, down),
            "radius": _radius(comparison, first),
        }
        for first, (across, down) in points.items()
        if across is not None and down is not None
    ]
    alike = len({(mark["colour"], mark["radius"] is None) for mark in marks}) < len(marks)
    for number, mark in enumerate(marks, start=1):
        mark["number"] = str(number) if alike else ""
    return {"width": WIDTH, "height": HEIGHT, "marks": marks, "x_ticks": x.ticks(), "y_ticks": y.ticks()}


def _radius(comparison: Comparison, first: Variant) -> float | None:
    """Of a LoRA's mark: its area grows with the bytes of the file. None without a LoRA."""
    if first.rank is None:
        return None
    largest = max(file.stat().st_size for file in comparison.files.values())
    return round(LARGEST_MARK * sqrt(comparison.files[first.training].stat().st_size / largest), 1)


def trends(comparison: Comparison) -> list[TrendChart]:
    """How the main measures go with the rank, and with alpha, at the other leading values; none of an axis with one value."""
    results, sweep = comparison.results, comparison.results.sweep
    words: list[Kind] = [kind for kind in sweep.kinds if kind == "textual_inversion"]
    loras: list[Kind] = [kind for kind in sweep.kinds if kind not in words]
    axes: list[tuple[str, str, list[Kind], list[Any]]] = [
        ("rank", "rank", loras, sorted({each.rank for each in sweep.variants if each.rank is not None and not each.is_word})),
        ("vectors", "rank", words, sorted(sweep.vectors)),
        ("alpha", "alpha", sweep.kinds, sorted(sweep.alpha)),
    ]
    charts = []
    for axis, field, kinds, values in axes:
        if len(values) < 2:
            continue
        arms: dict[Kind, list[Variant]] = {
            kind: [replace(sweep.leading_lora(kind), **{field: value}) for value in values] for kind in kinds
        }
        for measure in (BY_KEY[key] for key in dict.fromkeys([comparison.config.primary, *TREND_MEASURES])):
            if measure not in results.measures:
                continue
            rows = {
                comparison.config.names.of(kind): (
                    COLOURS[kind],
                    [results.levels[first][measure.key] if first in results.levels else None for first in of_kind],
                )
                for kind, of_kind in arms.items()
            }
            title = f"{measure.name[0].upper()}{measure.name[1:]}, by {axis}"
            charts.append(trend_chart(title, [f"{axis} {in_full(value)}" for value in values], rows))
    return charts


def training(comparison: Comparison, kind: Kind) -> dict[str, Any]:
    """The charts of the trainings of one kind of LoRA, by their titles, and the previews of each training, by prompt.

    Those of the first training by the first prompt stand below the chart of the loss, too.
    """
    trained = {comparison.namer.detail(variant): variant for variant in comparison.histories if variant.kind == kind}
    histories = {name: comparison.histories[variant] for name, variant in trained.items()}
    charts: dict[str, LineChart] = {
        "Loss": line_chart(histories, "loss", held_out=HELD_OUT_LOSS),
        "Learning rate": line_chart(histories, "learning_rate"),
        "Gradient norm": line_chart(histories, "grad_norm"),
    }
    previews = {name: by_prompt(comparison.previews[variant]) for name, variant in trained.items()}
    drawn = {name: of_prompts for name, of_prompts in previews.items() if of_prompts}
    on_axis = next(iter(next(iter(drawn.values())).values())) if drawn else []
    return {"kind": kind, "charts": charts, "previews": drawn, "on_axis": on_axis}


def by_prompt(previews: Sequence[Preview]) -> dict[str, list[Preview]]:
    """The previews of each prompt, in the order of their steps."""
    prompts = dict.fromkeys(preview.prompt for preview in previews)
    return {prompt: [preview for preview in previews if preview.prompt == prompt] for prompt in prompts}
