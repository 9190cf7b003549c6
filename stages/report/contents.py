"""What the report shows, and in which words and colours."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.drawing.cells import read_png_text
from stages.report.config import ReportConfig
from stages.report.effects import EFFECTS, Effect
from stages.report.histories import Course
from stages.report.naming import Namer
from stages.report.results import Results
from stages.report.scores import Interval
from stages.report.variants import Kind, Variant

COLOURS: dict[Kind, str] = {
    "theta0": "#64748b",
    "theta1": "#94a3b8",
    "merge": "#6366f1",
    "text2img": "#0d9488",
    "dreambooth": "#ea580c",
}


@dataclass(frozen=True)
class TrainingImages:
    """What the LoRAs were trained on: how many images, and a sample of files with their captions."""

    count: int
    sample: Sequence[tuple[Path, str]]


@dataclass(frozen=True)
class Sample:
    """An image that was drawn while training: with which prompt, after how many optimizer steps, and its file."""

    prompt: str
    step: int
    file: Path


def read_samples(folder: Path) -> list[Sample]:
    """The images p<prompt index>-step<step>.png of a folder, prompt by prompt; none where it does not exist."""
    files = sorted(folder.glob("p*-step*.png"), key=lambda file: tuple(map(int, file.stem[1:].split("-step"))))
    texts = [(read_png_text(file), file) for file in files]
    return [Sample(text["prompt"], int(text["step"]), file) for text, file in texts]


@dataclass(frozen=True)
class Comparison:
    """All that the report says.

    Attributes:
        results: what was drawn and scored.
        training: what the LoRAs were trained on.
        histories: of each LoRA's training the course of each quantity, as `read_history` gives it.
        samples: what each training drew on the way, if anything.
        config: how it is shown.
    """

    results: Results
    training: TrainingImages
    histories: Mapping[Variant, Mapping[str, Course]]
    samples: Mapping[Variant, Sequence[Sample]]
    config: ReportConfig

    def __post_init__(self) -> None:
        """Refuse prompts that were not drawn."""
        prompts = self.results.prompts
        for index in self.config.subject_prompts:
            if index not in prompts:
                raise ValueError(f"subject_prompts: given {index}: there are {len(prompts)} prompts, counted from 0")

    @property
    def namer(self) -> Namer:
        """Words for variants."""
        return Namer(self.config.names, self.results.sweep)

    @property
    def other_prompts(self) -> list[int]:
        """The prompts that ask for nothing of what the LoRAs learnt."""
        return [index for index in self.results.prompts if index not in self.config.subject_prompts]

    @property
    def groups(self) -> dict[str, Sequence[int]]:
        """The prompts that ask for what the LoRAs learnt ("subject"), and those that do not ("other"), if there are any."""
        groups = {"subject": self.config.subject_prompts, "other": self.other_prompts}
        return {name: prompts for name, prompts in groups.items() if prompts}

    def changes(self, variant: Variant) -> list[tuple[Effect, Interval]]:
        """What a LoRA changed, each with its interval over seeds; nothing without a LoRA."""
        if variant.rank is None:
            return []
        prompts = {True: self.groups["subject"], False: self.groups.get("other", ())}
        shown = [effect for effect in EFFECTS if prompts[effect.asked]]
        return [(effect, self.results.gain(variant, effect.metric, prompts[effect.asked])) for effect in shown]

    @property
    def training_title(self) -> str:
        """A heading for the training images."""
        return f"The LoRAs learnt from a dataset of {self.training.count} images like these"

    def pictures(self, variant: Variant, prompt_index: int) -> list[Path]:
        """The pictures of a cell of a grid."""
        return self.results.files(variant, prompt_index, self.config.images_per_cell)


def read_training_images(dataset: Path, count: int) -> TrainingImages:
    """Take `count` images, evenly spread, from a folder with metadata.csv.

    Raises:
        FileNotFoundError: metadata.csv or an image that it names is missing.
    """
    path = dataset / "metadata.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; make the captioned dataset first (stage caption)")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(dataset / row["file_name"], row["caption"]) for row in csv.DictReader(file)]
    sample = [rows[index * len(rows) // count] for index in range(min(count, len(rows)))] if count else []
    if missing := [image for image, _ in sample if not image.is_file()]:
        raise FileNotFoundError(f"{missing[0]}: named by metadata.csv and missing")
    return TrainingImages(len(rows), sample)
