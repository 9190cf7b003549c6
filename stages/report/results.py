"""All images and scores of a comparison, checked, and the means and differences of the scores."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.drawing.cells import Cell, read_cells
from stages.pipeline.variants import Variant
from stages.report.scores import Interval, Scores, differences, mean_interval, read_scores, select
from stages.report.sweep import Sweep


@dataclass(frozen=True)
class Results:
    """What every variant drew and how it was scored.

    Attributes:
        sweep: which variants there are.
        images: the folder that holds a folder of images for each variant.
        cells: every prompt with every seed, the same for all variants; each is an image of every variant.
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

    def mean(self, variant: Variant, metric: str, prompt_indices: Collection[int]) -> Interval:
        """Mean score over the prompts with these indices."""
        return mean_interval(select(self.scores[variant], metric, prompt_indices))

    def pairs(self, variant: Variant, metric: str, prompt_indices: Collection[int]) -> dict[Cell, float]:
        """For each image of a LoRA, its score minus that of its merge's image of the same prompt and seed."""
        of_variant, of_merge = (select(self.scores[each], metric, prompt_indices) for each in (variant, variant.merge))
        return differences(of_variant, of_merge)

    def gain(self, variant: Variant, metric: str, prompt_indices: Collection[int]) -> Interval:
        """What a LoRA changed: the mean of `pairs`."""
        return mean_interval(self.pairs(variant, metric, prompt_indices))


def read_results(sweep: Sweep, images: Path, scores: Path) -> Results:
    """Read the images and scores of the variants of the sweep; other files in the folders are not looked at.

    Raises:
        OSError: the images or the scores of a variant are missing.
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
