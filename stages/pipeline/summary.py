"""Print where the report is, and its headline scores.

python -m stages.pipeline.summary data/report
"""

import csv
import sys
from pathlib import Path

METRICS = {"reference_similarity": "to training images", "prompt_similarity": "to prompt"}
GROUPS = {"subject": "", "other": ", others"}
LEGEND = (
    "Likeness to the training images and to the prompt, on the prompts that ask for what the LoRAs learnt and on the others.",
    "In brackets: what the LoRA changed, and whether that is wanted; ? is not told apart from no change by these seeds.",
)


def main(report: Path) -> None:
    """Print the paths of the page and the grid, and the mean scores of every variant with what its LoRA changed."""
    print(f"\nreport  {(report / 'index.html').resolve()}\ngrid    {(report / 'grid.png').resolve()}\n")
    rows = score_rows(report)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    print("", *LEGEND, sep="\n")


def score_rows(report: Path) -> list[list[str]]:
    """The means of scores.csv as a table of texts, the first row its headings: variants down, scores across."""
    with (report / "scores.csv").open(newline="", encoding="utf-8") as file:
        means = {(row["variant"], row["prompts"]): row for row in csv.DictReader(file) if not row["prompt"]}
    variants = dict.fromkeys(variant for variant, _ in means)
    shown = [(metric, group) for group in GROUPS for metric in METRICS if any(of == group for _, of in means)]
    head = ["", *(f"{METRICS[metric]}{GROUPS[group]}" for metric, group in shown)]
    return [head, *([variant, *(_score(means[variant, group], metric) for metric, group in shown)] for variant in variants)]


def _score(row: dict[str, str], metric: str) -> str:
    mean = f"{float(row[metric]):.3f}"
    if not row[f"{metric}_gain"]:
        return mean
    verdict = row[f"{metric}_verdict"]
    return f"{mean} ({float(row[f'{metric}_gain']):+.3f} {verdict if verdict in ('good', 'harm', 'no harm') else '?'})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
