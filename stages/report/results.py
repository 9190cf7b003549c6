"""All images of a comparison and what is measured of them, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.dataset.metadata import TEST, read_manifest
from stages.drawing.cells import Cell, Prompts, read_cells
from stages.measures.comparing import ArmValues, Measure, estimate
from stages.measures.embedded_files import Embedded, read_embedded
from stages.measures.likeness import mmd_test
from stages.measures.measuring import DINO, METRICS, Dataset, Measured, dataset_of, measure
from stages.measures.statistics import Interval
from stages.pipeline.variants import DATASET, Variant
from stages.report.sweep import Sweep


@dataclass(frozen=True)
class Results:
    """What every variant drew and what was measured of it.

    Attributes:
        sweep: which variants there are.
        images: the folder that holds a folder of images for each variant.
        cells: every prompt with every seed, the same for all variants; each is an image of every variant.
        dataset: what the LoRAs learnt from, and what was held out.
        measured: of each variant.
    """

    sweep: Sweep
    images: Path
    cells: Sequence[Cell]
    dataset: Dataset
    measured: Mapping[Variant, Measured]

    @cached_property
    def prompts(self) -> dict[int, str]:
        """Prompts by their index."""
        return {cell.prompt_index: cell.prompt for cell in self.cells}

    @cached_property
    def groups(self) -> dict[Prompts, list[int]]:
        """Indices of the prompts that ask for what the LoRAs learnt ("subject"), and of the others, if any ("other")."""
        groups: dict[Prompts, list[int]] = {}
        for cell in self.cells:
            if cell.prompt_index not in groups.setdefault(cell.prompts, []):
                groups[cell.prompts].append(cell.prompt_index)
        return groups

    @cached_property
    def asks(self) -> NDArray[np.bool_]:
        """(P,), whether a prompt asks for what the LoRAs learnt."""
        return np.array([index in self.groups["subject"] for index in self.prompts])

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds, in the order in which they were drawn."""
        return list(dict.fromkeys(cell.seed for cell in self.cells))

    def files(self, variant: Variant, prompt_index: int, count: int | None = None) -> list[Path]:
        """The pictures of one prompt, of the first `count` seeds or of all."""
        names = [cell.file_name for cell in self.cells if cell.prompt_index == prompt_index]
        return [self.images / variant.name / name for name in names[:count]]

    def arm(self, first: Variant, seeds: NDArray[np.bool_] | None = None) -> ArmValues:
        """For each metric the values of an arm, (T, P), over all seeds of the noise or some of them."""
        trained = [self.measured[variant] for variant in self.sweep.arms[first]]
        return {metric: np.stack([each.by_prompt(metric, seeds) for each in trained]) for metric in METRICS}

    def level(self, first: Variant, measure: Measure) -> Interval:
        """A measure of an arm."""
        return estimate(measure, self.arm(first)[measure.metric], self.asks)

    def value(self, variant: Variant, measure: Measure) -> float:
        """A measure of one variant, whatever other trainings there are."""
        return estimate(measure, self.measured[variant].by_prompt(measure.metric)[None], self.asks).mean

    def distance(self, variant: Variant) -> tuple[float, float] | None:
        """The squared maximum mean discrepancy of the subject's images from the references (DINO), and its permutation p.

        None where there are not two of each.
        """
        images = self.measured[variant].images[DINO][self.asks]
        images, references = images.reshape(-1, images.shape[-1]), self.dataset.references[DINO]
        return mmd_test(images, references) if min(len(images), len(references)) > 1 else None

    def group_mean(self, variant: Variant, metric: str, group: Prompts) -> float:
        """The mean of a metric over the prompts of a list."""
        return float(self.measured[variant].by_prompt(metric)[self.asks if group == "subject" else ~self.asks].mean())

    def prompt_mean(self, variant: Variant, metric: str, prompt_index: int) -> float:
        """The mean of a metric over the seeds of one prompt."""
        return float(self.measured[variant].by_prompt(metric)[list(self.prompts).index(prompt_index)])


def read_results(sweep: Sweep, images: Path, embeddings: Path, raw: Path) -> Results:
    """Read the images of the variants of the sweep and their embeddings; other files in the folders are not looked at.

    Args:
        sweep: which variants there are.
        images: the folder with a folder of images for each variant.
        embeddings: the folder with a file of embeddings for each variant, and for the dataset.
        raw: the folder of the dataset's images, and of the manifest that says which are held out.

    Raises:
        OSError: the images or the embeddings of a variant are missing.
        ValueError: two variants were drawn from different prompts or seeds, or embedded by different encoders, or the
            embeddings are of other images.
    """
    first, *_ = sweep.variants
    cells = read_cells(images / first.name)
    for variant in sweep.variants:
        if read_cells(images / variant.name) != cells:
            raise ValueError(
                f"{images / variant.name}: has other prompts or seeds than {images / first.name}; generate both again"
            )
    rows = read_manifest(raw)
    of_dataset = _read(embeddings / f"{DATASET}.safetensors", [row.file_name for row in rows])
    names = [cell.file_name for cell in cells]
    embedded = {variant: _read(embeddings / f"{variant.name}.safetensors", names) for variant in sweep.variants}
    for variant, each in embedded.items():
        if each.encoders != of_dataset.encoders:
            path = embeddings / f"{variant.name}.safetensors"
            raise ValueError(f"{path}: by other encoders than {embeddings / DATASET}.safetensors; run the stage embed again")
    dataset = dataset_of(of_dataset, [row.file_name for row in rows if row.split == TEST])
    prompts, seeds = len({cell.prompt for cell in cells}), len({cell.seed for cell in cells})
    measured = {
        variant: measure(each, _before(variant, embedded), dataset, prompts, seeds) for variant, each in embedded.items()
    }
    return Results(sweep, images, cells, dataset, measured)


def _read(path: Path, names: Sequence[str]) -> Embedded:
    embedded = read_embedded(path)
    if list(embedded.file_names) != list(names):
        raise ValueError(f"{path}: not the embeddings of these images; run the stage embed again")
    return embedded


def _before(variant: Variant, embedded: Mapping[Variant, Embedded]) -> Embedded:
    """What a variant's drift is measured from: its merge, and of an original itself."""
    return embedded[variant if variant.alpha is None else variant.merge]
