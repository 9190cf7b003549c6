"""Print where the report is, what was found, and the main measures.

python -m stages.pipeline.summary data/report
"""

import sys
from pathlib import Path

from stages.pipeline.tables import read_table

MEASURES = {
    "trigger_specificity": "specificity",
    "subject_fidelity": "likeness to subject",
    "leak": "leak",
    "prompt_alignment": "likeness to prompt",
    "prompt_alignment_other": "to other prompts",
}
LEGEND = (
    "Specificity: likeness to the subject (DINO) where asked for, minus where not (leak). To the prompt: CLIP-T.",
    "All measures, with their intervals, are in levels.csv; all comparisons, with their verdicts, in contrasts.csv.",
)


def main(report: Path) -> None:
    """Print the paths of the page and the grid, the findings, and the measures of every variant."""
    print(f"\nreport  {(report / 'index.html').resolve()}\ngrid    {(report / 'grid.png').resolve()}\n")
    rows = score_rows(report)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    print("", *LEGEND, "", *findings(report), sep="\n")


def findings(report: Path) -> list[str]:
    """What was found, a sentence or two a line."""
    return (report / "findings.txt").read_text(encoding="utf-8").splitlines()


def score_rows(report: Path) -> list[list[str]]:
    """The main measures of levels.csv as a table of texts, the first row its headings: variants down, measures across."""
    rows = read_table(report / "levels.csv", ("variant", "measure", "mean", "low", "high"))
    levels = {(row["variant"], row["measure"]): row for row in rows}
    shown = {key: name for key, name in MEASURES.items() if any(measure == key for _, measure in levels)}
    variants = dict.fromkeys(row["variant"] for row in rows)
    head = ["", *shown.values()]
    return [head, *([variant, *(_level(levels[variant, key]) for key in shown)] for variant in variants)]


def _level(row: dict[str, str]) -> str:
    mean = f"{float(row['mean']):.3f}"
    return f"{mean} [{float(row['low']):.3f}, {float(row['high']):.3f}]" if row["low"] else mean


if __name__ == "__main__":
    main(Path(sys.argv[1]))
