"""All cells and scores of a comparison, checked, and what can be said about them in numbers. Imports no torch."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.comparison.cells import Cell, read_cells
from stages.comparison.histories import read_history
from stages.comparison.scores import METRICS, Interval, Scores, differences, mean_interval, read_scores, select
from stages.comparison.variants import Sweep, Variant
from stages.pipeline.tables import write_table


@dataclass(frozen=True)
class Results:
    """What every variant drew and how it was scored.

    Attributes:
        sweep: which variants there are.
        images: the folder with one folder of cells a variant.
        cells: the same for every variant.
        scores: of each variant.
    """

    sweep: Sweep
    images: Path
    cells: Sequence[Cell]
    scores: dict[Variant, Scores]

    @property
    def prompts(self) -> dict[int, str]:
        """Prompts by their index."""
        return {cell.prompt_index: cell.prompt for cell in self.cells}

    @property
    def seeds(self) -> list[int]:
        """Seeds, in the order in which they were drawn."""
        return list(dict.fromkeys(cell.seed for cell in self.cells))

    def files(self, variant: Variant, prompt_index: int, count: int | None = None) -> list[Path]:
        """The pictures of one prompt, of the first `count` seeds or of all."""
        names = [cell.file_name for cell in self.cells if cell.prompt_index == prompt_index]
        return [self.images / variant.name / name for name in names[:count]]

    def mean(self, variant: Variant, metric: str, prompts: Collection[int] | None = None) -> Interval:
        """Mean score over the prompts with these indices, or over all."""
        return mean_interval(select(self.scores[variant], metric, prompts))

    def pairs(self, variant: Variant, metric: str, prompts: Collection[int] | None = None) -> dict[Cell, float]:
        """What each image of a LoRA scores above the image of its merge from the same prompt and noise."""
        of_variant, of_merge = (select(self.scores[each], metric, prompts) for each in (variant, variant.merge))
        return differences(of_variant, of_merge)

    def gain(self, variant: Variant, metric: str, prompts: Collection[int] | None = None) -> Interval:
        """Mean of `pairs`."""
        return mean_interval(self.pairs(variant, metric, prompts))


def read_results(sweep: Sweep, images: Path, scores: Path) -> Results:
    """Read what the variants of the sweep drew and scored; whatever else lies in the folders is left alone.

    Raises:
        OSError: the cells or the scores of a variant are missing.
        ValueError: two variants were drawn from different prompts or seeds.
    """
    first, *_ = sweep.variants
    cells = read_cells(images / first.name)
    for variant in sweep.variants:
        if read_cells(images / variant.name) != cells:
            raise ValueError(
                f"{images / variant.name}: has other prompts or seeds than {images / first.name}; generate both again"
            )
    of_variant = {variant: read_scores(scores / f"{variant.name}.csv", cells) for variant in sweep.variants}
    return Results(sweep, images, cells, of_variant)


def write_scores_table(results: Results, path: Path) -> None:
    """Write scores.csv: for each variant a row over all prompts and one a prompt, each metric with its 95 % interval.

    `…_gain` is the mean difference to the same merge without a LoRA, paired by prompt and seed; empty where there is none.
    """
    bounds = ("", "_low", "_high", "_gain", "_gain_low", "_gain_high")
    columns = [f"{metric}{end}" for metric in METRICS for end in bounds]
    header = ("variant", "kind", "alpha", "rank", "prompt", "images", *columns)
    write_table(path, header, _rows(results))


def write_variants_table(results: Results, histories: Mapping[Variant, Path], path: Path) -> None:
    """Write variants.csv: one row a variant with its mean scores, and for a LoRA the last loss of its held-out images."""
    rows = (_variant_row(results, variant, histories.get(variant)) for variant in results.scores)
    write_table(path, ("variant", "kind", "alpha", "rank", *METRICS, "validation_loss"), rows)


def _variant_row(results: Results, variant: Variant, history: Path | None) -> Sequence[Any]:
    held_out = [] if history is None else read_history(history)["validation_loss"].values.tolist()
    means = (_number(results.mean(variant, metric).mean) for metric in METRICS)
    return (variant.name, variant.kind, variant.alpha, variant.rank, *means, _number(held_out[-1]) if len(held_out) else "")


def write_metrics(results: Results, subject_prompts: Collection[int], path: Path) -> None:
    """Write metrics.json: the leading variants' mean scores on the subject prompts, and what the LoRAs gained there.

    `…_leak` is what a LoRA gained in likeness to the training images on the other prompts, where it should gain nothing.
    """
    other_prompts = set(results.prompts) - set(subject_prompts)
    headline: dict[str, float] = {}
    for variant in results.sweep.leading:
        for metric in METRICS:
            headline[f"{variant.kind}_{metric}"] = results.mean(variant, metric, subject_prompts).mean
            if variant.rank is not None:
                headline[f"{variant.kind}_{metric}_gain"] = results.gain(variant, metric, subject_prompts).mean
        if variant.rank is not None and other_prompts:
            headline[f"{variant.kind}_leak"] = results.gain(variant, "reference_similarity", other_prompts).mean
    rounded = {name: round(value, 4) for name, value in headline.items()}
    path.write_text(json.dumps(rounded, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _rows(results: Results) -> Iterator[Sequence[Any]]:
    for variant in results.scores:
        for index in (None, *results.prompts):
            prompts = None if index is None else {index}
            numbers: list[str] = []
            for metric in METRICS:
                numbers += _bounds(results.mean(variant, metric, prompts))
                numbers += _bounds(results.gain(variant, metric, prompts)) if variant.rank else [""] * 3
            images = len(select(results.scores[variant], METRICS[0], prompts))
            prompt = "(all)" if index is None else results.prompts[index]
            yield (variant.name, variant.kind, variant.alpha, variant.rank, prompt, images, *numbers)


def _bounds(interval: Interval) -> list[str]:
    return [_number(value) for value in (interval.mean, interval.low, interval.high)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
