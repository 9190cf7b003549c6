"""Every chart of the page as an SVG file of its own, for `dvc plots` and for other documents."""

from pathlib import Path
from typing import Any

from stages.report.contents import COLOURS, Comparison
from stages.report.plots import METRIC_NAMES, forest, trade_off, training, trends
from stages.report.rendering import template

TRADE_OFF = "Likeness to the subject where it is asked for (right is better), and where it is not (lower is better)"
CHART_FILES = {"Loss": "loss", "Learning rate": "learning_rate", "Gradient norm": "grad_norm"}
"""For each chart of a training how its file's name begins."""


def write_charts(comparison: Comparison, folder: Path) -> None:
    """Write scores-<metric>.svg, and for each kind of LoRA loss-<kind>.svg, learning_rate-<kind>.svg, grad_norm-<kind>.svg.

    Where some prompts do not ask for what was learnt, trade-off.svg too; for several ranks or alphas, trend-<number>.svg.
    """
    macros: Any = template("charts.svg.jinja").module
    for metric, name in METRIC_NAMES.items():
        drawn = forest(comparison, metric)
        _write(folder / f"scores-{metric}.svg", macros.forest_file(drawn, name, drawn["legend"]))
    if (chart := trade_off(comparison)) is not None:
        _write(folder / "trade-off.svg", macros.trade_off_file(chart, TRADE_OFF))
    for number, chart in enumerate(trends(comparison), start=1):
        _write(folder / f"trend-{number}.svg", macros.trend_file(chart))
    for kind in comparison.results.sweep.kinds:
        for name, chart in training(comparison, kind)["charts"].items():
            title = f"{comparison.config.names.of(kind)}: {name.lower()}"
            _write(folder / f"{CHART_FILES[name]}-{kind}.svg", macros.line_chart_file(chart, title, COLOURS[kind]))


def _write(path: Path, svg: str) -> None:
    lines = (line.strip() for line in str(svg).splitlines())
    path.write_text("\n".join(filter(None, lines)) + "\n", encoding="utf-8")
