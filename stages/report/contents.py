"""Everything that the report shows: results, training images, histories and previews, with its settings and colours."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stages.dataset.metadata import METADATA, TRAIN
from stages.drawing.image_files import read_image_recipe
from stages.pipeline.variants import Kind, Variant
from stages.report.config import ReportConfig
from stages.report.findings import Findings
from stages.report.histories import Series
from stages.report.naming import Namer
from stages.report.results import Results

COLOURS: dict[Kind, str] = {
    "theta0": "#64748b",
    "theta1": "#94a3b8",
    "merge": "#6366f1",
    "text2img": "#0d9488",
    "dreambooth": "#ea580c",
}


@dataclass(frozen=True)
class TrainingImages:
    """What the LoRAs were trained on: how many images, some of the files with their captions, to be shown, and their folder."""

    count: int
    shown: Sequence[tuple[Path, str]]
    folder: Path


@dataclass(frozen=True)
class Preview:
    """An image that was drawn while training: its prompt, the optimizer steps done by then, and its file."""

    prompt: str
    step: int
    file: Path


def read_previews(folder: Path) -> list[Preview]:
    """Read the images p<prompt index>-step<step>.png of a folder, prompt by prompt; none where there is no such folder."""
    files = sorted(folder.glob("p*-step*.png"), key=lambda file: tuple(map(int, file.stem[1:].split("-step"))))
    recipes = [(read_image_recipe(file), file) for file in files]
    return [Preview(recipe["prompt"], recipe["training_step"], file) for recipe, file in recipes]


@dataclass(frozen=True)
class Comparison:
    """All that the report is made from.

    Attributes:
        results: what was drawn and scored.
        training: what the LoRAs were trained on.
        histories: of each LoRA's training, as `read_history` gives it.
        previews: the images that each training drew, if any.
        files: what each training wrote: the LoRA's file, or the UNet's.
        config: how it is shown.
    """

    results: Results
    training: TrainingImages
    histories: Mapping[Variant, Mapping[str, Series]]
    previews: Mapping[Variant, Sequence[Preview]]
    files: Mapping[Variant, Path]
    config: ReportConfig

    @property
    def namer(self) -> Namer:
        """What the variants are called."""
        return Namer(self.config.names, self.results.sweep)

    @cached_property
    def findings(self) -> Findings:
        """What is said of the results."""
        return Findings(self.results, self.namer, self.config.primary, self.config.contrasts)

    @property
    def subject_prompts(self) -> list[int]:
        """Indices of the prompts that ask for what the LoRAs learnt."""
        return self.results.groups["subject"]

    @property
    def other_prompts(self) -> list[int]:
        """Indices of the prompts that ask for nothing of what the LoRAs learnt."""
        return self.results.groups.get("other", [])

    @property
    def training_title(self) -> str:
        """A heading for the training images."""
        images = "1 image, this one" if self.training.count == 1 else f"{self.training.count} images like these"
        return f"The LoRAs learnt from {images}"

    def pictures(self, variant: Variant, prompt_index: int) -> list[Path]:
        """The pictures in a cell of a grid: one variant, one prompt, and as many seeds as a cell shows."""
        return self.results.files(variant, prompt_index, self.config.images_per_cell)


def read_training_images(dataset: Path, count: int) -> TrainingImages:
    """Take `count` images, evenly spread, from those of a dataset that are trained on.

    Raises:
        FileNotFoundError: metadata.csv or an image that it names is missing.
    """
    path = dataset / TRAIN / METADATA
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; make the captioned dataset first (stage caption)")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(path.parent / row["file_name"], row["caption"]) for row in csv.DictReader(file)]
    shown = [rows[index * len(rows) // count] for index in range(min(count, len(rows)))] if count else []
    if missing := [image for image, _ in shown if not image.is_file()]:
        raise FileNotFoundError(f"{missing[0]}: named by metadata.csv and missing")
    return TrainingImages(len(rows), shown, path.parent)
