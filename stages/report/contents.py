"""Everything that the report shows: results, training images, histories and previews, with its settings and colours."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.dataset.metadata import (
    MASKS,
    METADATA,
    SKIPPED,
    SKIPPED_COLUMNS,
    TRAIN,
    ManifestRow,
    read_dataset,
    read_manifest,
)
from stages.drawing.image_files import read_image_recipe
from stages.pipeline.tables import read_table
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
    "textual_inversion": "#be185d",
}


SHEET = 600
"""How many images of the dataset the page shows at most."""


@dataclass(frozen=True)
class DataImage:
    """An image of the dataset.

    Attributes:
        file: where it is.
        caption: what it was trained with, or would have been.
        row: where it comes from, whether it was held out, and its image set.
        mask: the file of its mask, if it has one.
    """

    file: Path
    caption: str
    row: ManifestRow
    mask: Path | None = None


@dataclass(frozen=True)
class TrainingImages:
    """What the LoRAs were trained on.

    Attributes:
        images: all of the dataset, those held out among them, in the order of their names.
        skipped: what was found and not taken, with the reason.
        shown_count: how many of those trained on are shown beside a grid; 0 shows none of the dataset anywhere.
        raw: the folder of the images as they were fetched, and of their masks.
    """

    images: Sequence[DataImage]
    skipped: Sequence[tuple[str, str]]
    shown_count: int
    raw: Path = Path()

    @property
    def trained_on(self) -> list[DataImage]:
        """Those that were not held out."""
        return [image for image in self.images if image.row.split == TRAIN]

    @property
    def count(self) -> int:
        """How many were trained on."""
        return len(self.trained_on)

    @property
    def shown(self) -> list[DataImage]:
        """As many as are shown of those trained on, evenly spread."""
        rows, count = self.trained_on, self.shown_count
        return [rows[index * len(rows) // count] for index in range(min(count, len(rows)))] if count else []

    @property
    def sheet(self) -> list[DataImage]:
        """All of them, or `SHEET` evenly spread; none where none is shown."""
        count = min(SHEET, len(self.images)) if self.shown_count else 0
        return [self.images[index * len(self.images) // count] for index in range(count)]

    @property
    def digest(self) -> str:
        """The sha256 of the digests of those trained on, with their captions."""
        lines = "".join(f"{image.row.sha256} {image.caption}\n" for image in self.trained_on)
        return hashlib.sha256(lines.encode()).hexdigest()

    def file_of(self, name: str) -> Path:
        """The file of an image by its name."""
        return next(image.file for image in self.images if image.file.name == name)


@dataclass(frozen=True)
class Preview:
    """An image that was drawn while training: its prompt, the optimizer steps done by then, and its file."""

    prompt: str
    step: int
    file: Path


def read_previews(folder: Path) -> list[Preview]:
    """Read the images p<prompt index>-step<step>.png of a folder, prompt by prompt; none where there is no such folder.

    Raises:
        ValueError: an image does not say what it is.
    """
    files = sorted(folder.glob("p*-step*.png"), key=lambda file: tuple(map(int, file.stem[1:].split("-step"))))
    recipes = [(read_image_recipe(file), file) for file in files]
    for recipe, file in recipes:
        if not {"prompt", "training_step"} <= set(recipe):
            raise ValueError(f"{file}: does not say its prompt and its step: it was not drawn by a training; remove it")
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
        trainings: of each kind of training the settings that its weights depend on, by their names.
        merging: the settings of the merge.
        config: how it is shown.
        dataset: the folder of the captioned images.
        loras: the folder of the trainings.
    """

    results: Results
    training: TrainingImages
    histories: Mapping[Variant, Mapping[str, Series]]
    previews: Mapping[Variant, Sequence[Preview]]
    files: Mapping[Variant, Path]
    trainings: Mapping[Kind, Mapping[str, Any]]
    merging: Mapping[str, Any]
    config: ReportConfig
    dataset: Path
    loras: Path

    @property
    def namer(self) -> Namer:
        """What the variants are called."""
        return Namer(self.config.names, self.results.sweep)

    @cached_property
    def findings(self) -> Findings:
        """What is said of the results."""
        return Findings(self.results, self.namer, self.config.primary, self.config.contrasts)

    @cached_property
    def recipes(self) -> dict[Variant, dict[str, Any]]:
        """How the images of each variant were drawn, as the first of them says."""
        first = next(iter(self.results.prompts))
        return {variant: read_image_recipe(self.results.files(variant, first)[0]) for variant in self.results.sweep.variants}

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

    def training_of(self, variant: Variant) -> dict[str, Any]:
        """How something was trained: its rank or vectors and its seed, how many images, and the settings of its kind."""
        size = {"vectors" if variant.is_word else "rank": variant.rank}
        return {**size, "seed": variant.seed, "images": self.training.count, **self.trainings[variant.kind]}

    def pictures(self, variant: Variant, prompt_index: int) -> list[Path]:
        """The pictures in a cell of a grid: one variant, one prompt, and as many seeds as a cell shows."""
        return self.results.files(variant, prompt_index, self.config.images_per_cell)


def read_training_images(dataset: Path, raw: Path, count: int) -> TrainingImages:
    """Read the images of a dataset, of which `count` are to be shown.

    Raises:
        FileNotFoundError: a table or an image that it names is missing.
        ValueError: a table is not as it was written, or the manifest lacks an image.
    """
    if not (dataset / TRAIN / METADATA).is_file():
        raise FileNotFoundError(f"{dataset / TRAIN / METADATA}: missing; make the captioned dataset first (stage caption)")
    rows = {row.file_name: row for row in read_manifest(raw)}
    images = []
    for split, captions in read_dataset(dataset).items():
        for name, caption in captions.items():
            if name not in rows:
                raise ValueError(f"{raw}: its manifest lacks {name}, which {dataset / split} has; run the stage caption again")
            mask = raw / MASKS / name if rows[name].mask_sha256 else None
            images.append(DataImage(dataset / split / name, caption, rows[name], mask))
    skipped = [(row["name"], row["why"]) for row in read_table(raw / SKIPPED, SKIPPED_COLUMNS)]
    return TrainingImages(sorted(images, key=lambda image: image.file.name), skipped, count, raw)
