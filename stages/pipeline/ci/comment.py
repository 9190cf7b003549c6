"""The comment on a pull request: the grid before and after, the scores, and what changed in them, as Markdown."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.measures.comparing import BY_KEY
from stages.pipeline.dvc_command import run_dvc
from stages.pipeline.summary import LEGEND, findings, score_rows

Metrics = Mapping[str, Mapping[str, float]]
"""For each variant its scores, as metrics.json has them."""

OTHER_TRAININGS = "These are means without intervals, of one training each: another training seed would change them too."


def write_comment(comment: Path, report: Path, before: str | None) -> None:
    """Write a Markdown file; CML publishes the pictures that it names.

    Args:
        comment: the file; a picture is put beside it.
        report: the folder of the present report, which need not be there.
        before: git revision whose report is shown beside it.
    """
    lines = ["## The comparison", ""]
    if not (report / "grid.png").is_file():
        lines += [f"There is no report: nothing had to run, and {report} is not on the DVC remote (`dvc push`)."]
    elif before is None:
        lines += _picture("grid", report / "grid.png") + _scores(report)
    else:
        lines += _beside(comment, report, before)
    comment.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _beside(comment: Path, report: Path, before: str) -> list[str]:
    old_grid = comment.with_name("grid-before.png")
    if not _get(report / "grid.png", before, old_grid):
        missing = f"The report of {before} is neither in the cache nor on the DVC remote: there is nothing to compare with."
        return [missing, "", *_picture("grid", report / "grid.png"), *_scores(report)]
    rows = list(changes(_old_metrics(report, before), _metrics(report / "metrics.json")))
    if not rows and old_grid.read_bytes() == (report / "grid.png").read_bytes():
        unchanged = f"Nothing changed: every score and the grid are those of {before}."
        return [unchanged, "", *_picture("grid", report / "grid.png"), *_scores(report)]
    pictures = [f"Before ({before}):", "", *_picture("grid before", Path(old_grid.name)), "After:", ""]
    table = ["No score changed.", ""]
    if rows:
        table = [*_table(("", "score", "before", "after", "change", ""), rows), OTHER_TRAININGS, ""]
    return [*pictures, *_picture("grid", report / "grid.png"), f"What changed since {before}:", "", *table, *_scores(report)]


def changes(old: Metrics, new: Metrics) -> Iterator[Sequence[str]]:
    """A row for each score that differs, with whether that is for the better, and one for each variant that is new or gone."""
    for variant in sorted({*old, *new}):
        if variant not in new or variant not in old:
            yield variant, "", "", "", "", "new" if variant in new else "gone"
            continue
        for name in sorted({*old[variant], *new[variant]}):
            was, now = old[variant].get(name), new[variant].get(name)
            if was is None or now is None:
                yield variant, name, _number(was), _number(now), "", "gone" if now is None else "new"
            elif was != now:
                yield variant, name, _number(was), _number(now), f"{now - was:+.4f}", _direction(name, now - was)


def _direction(name: str, change: float) -> str:
    """Whether a change of what a LoRA changed is wanted; "" for a measure itself, which any model has."""
    measure = BY_KEY.get(name.removesuffix("_gain"))
    if measure is None or not name.endswith("_gain"):
        return ""
    return "for the better" if measure.wanted * change > 0 else "for the worse"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _scores(report: Path) -> list[str]:
    head, *rows = score_rows(report)
    found = [f"- {line}" for line in findings(report)]
    return ["What was found:", "", *found, "", "Measures:", "", *_table(head, rows), *LEGEND, ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def _picture(name: str, file: Path) -> list[str]:
    return [f"![{name}]({file.as_posix()})", ""]


def _old_metrics(report: Path, revision: str) -> Metrics:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "metrics.json")
        return _metrics(file) if _get(report / file.name, revision, file) else {}


def _metrics(file: Path) -> Metrics:
    """The scores of each variant; in files of an older form some values belong to no variant, and are left out."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {name: values for name, values in content.items() if isinstance(values, dict)}


def _get(path: Path, revision: str, out: Path) -> bool:
    """Take a file of another revision from DVC's cache or remote; whether it was there."""
    return run_dvc("get", ".", path.as_posix(), "--rev", revision, "--out", str(out), "--force") == 0
