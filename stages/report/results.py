"""All images of a comparison and what is measured of them, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.dataset.metadata import TEST, read_manifest
from stages.drawing.cells import Cell, Prompts, read_cells
from stages.measures.comparing import MEASURES, ArmValues, Measure, applies, estimate
from stages.measures.embedded_files import Embedded, read_embedded
from stages.measures.likeness import Values, mmd_test
from stages.measures.measuring import DINO, METRICS, Dataset, Measured, dataset_of, measure
from stages.measures.statistics import Interval
from stages.pipeline.variants import DATASET, Variant
from stages.pipeline.wording import has_phrase, refuse_unknown_sets
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
        encoders: by "clip" and "dino", the digests of the weights that embedded all images.
    """

    sweep: Sweep
    images: Path
    cells: Sequence[Cell]
    dataset: Dataset
    measured: Mapping[Variant, Measured]
    encoders: Mapping[str, str]

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

    @cached_property
    def arms(self) -> dict[Variant, list[Variant]]:
        """`Sweep.arms`."""
        return self.sweep.arms

    def values(self, first: Variant, metric: str, seeds: NDArray[np.bool_] | None = None) -> Values:
        """A metric of an arm, (T, P), over all seeds of the noise or some of them."""
        return np.stack([self.measured[variant].by_prompt(metric, seeds) for variant in self.arms[first]])

    def arm(self, first: Variant) -> ArmValues:
        """Each metric of an arm, (T, P)."""
        return {metric: self.values(first, metric) for metric in METRICS}

    @cached_property
    def measures(self) -> list[Measure]:
        """Those that can be taken of these prompts and seeds."""
        return [measure for measure in MEASURES if applies(measure, self.asks, len(self.seeds))]

    @cached_property
    def levels(self) -> dict[Variant, dict[str, Interval]]:
        """Every measure of every arm, by the measure's key."""
        return {
            first: {measure.key: estimate(measure, self.values(first, measure.metric), self.asks) for measure in self.measures}
            for first in self.arms
        }

    def value(self, variant: Variant, measure: Measure) -> float:
        """A measure of one variant, whatever other trainings there are."""
        return estimate(measure, self.measured[variant].by_prompt(measure.metric)[None], self.asks).mean

    @cached_property
    def distances(self) -> dict[Variant, tuple[float, float]]:
        """The squared maximum mean discrepancy of each variant's images of the subject from the references, and its p (DINO).

        None at all where there are not two of each.
        """
        references = self.dataset.references[DINO]
        of_subject = {
            variant: measured.images[DINO][self.asks].reshape(-1, references.shape[1])
            for variant, measured in self.measured.items()
        }
        return {
            variant: mmd_test(images, references)
            for variant, images in of_subject.items()
            if min(len(images), len(references)) > 1
        }

    def group_mean(self, variant: Variant, metric: str, group: Prompts) -> float:
        """The mean of a metric over the prompts of a list."""
        return float(self.measured[variant].by_prompt(metric)[self.asks if group == "subject" else ~self.asks].mean())

    def prompt_mean(self, variant: Variant, metric: str, prompt_index: int) -> float:
        """The mean of a metric over the seeds of one prompt."""
        return float(self.measured[variant].by_prompt(metric)[list(self.prompts).index(prompt_index)])


def read_results(sweep: Sweep, images: Path, embeddings: Path, raw: Path, subjects: Mapping[str, str]) -> Results:
    """Read the images of the variants of the sweep and their embeddings; other files in the folders are not looked at.

    Args:
        sweep: which variants there are.
        images: the folder with a folder of images for each variant.
        embeddings: the folder with a file of embeddings for each variant, and for the dataset.
        raw: the folder of the dataset's images, and of the manifest that says which are held out.
        subjects: of several, what each is called in prompts, by the name of its image set: a prompt that names some of them is
            measured by their images.

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
    files = [cell.file_name for cell in cells]
    embedded = {variant: _read(embeddings / f"{variant.name}.safetensors", files) for variant in sweep.variants}
    for variant, each in embedded.items():
        if each.encoders != of_dataset.encoders:
            path = embeddings / f"{variant.name}.safetensors"
            raise ValueError(f"{path}: by other encoders than {embeddings / DATASET}.safetensors; run the stage embed again")
    refuse_unknown_sets("subjects", subjects, {row.image_set for row in rows})
    of_subject = {row.file_name: row.image_set for row in rows if row.image_set in subjects}
    dataset = dataset_of(of_dataset, [row.file_name for row in rows if row.split == TEST], of_subject)
    prompts, seeds = dict.fromkeys(cell.prompt for cell in cells), len({cell.seed for cell in cells})
    asked = [[name for name, trigger in subjects.items() if has_phrase(prompt, trigger)] for prompt in prompts]
    measured = {variant: measure(each, _before(variant, embedded), dataset, asked, seeds) for variant, each in embedded.items()}
    return Results(sweep, images, cells, dataset, measured, of_dataset.encoders)


def _read(path: Path, names: Sequence[str]) -> Embedded:
    embedded = read_embedded(path)
    if list(embedded.file_names) != list(names):
        raise ValueError(f"{path}: not the embeddings of these images; run the stage embed again")
    return embedded


def _before(variant: Variant, embedded: Mapping[Variant, Embedded]) -> Embedded:
    """What a variant's drift is measured from: its merge, and of an original itself."""
    return embedded[variant if variant.alpha is None else variant.merge]
