"""Put all variants side by side: grids, scores with confidence intervals, and a report to read.

Reads the images and scores of every variant of the sweep, the captioned training images, and what the LoRAs' trainings
logged and drew on the way. Writes grid.png, scores.csv, variants.csv, metrics.json, tables for `dvc plots` (loss.csv,
validation_loss.csv, learning_rate.csv, grad_norm.csv), charts/ with a sweep-<kind>.png for each kind of LoRA (alpha down,
rank across) and every chart of the page as SVG, and index.html, a page that needs no other file. A report that is there
stays until the new one is whole.

A stage of its own, and without torch, so that the look of the report and the words in it can be changed in seconds. What
lies in the folders and is not in the sweep is left alone: a value taken out of the sweep is gone from the report, and comes
back with it.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FilePath
from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import Count, SweepConfig, Text, strict
from stages.pipeline.outputs import atomic_directory

Index = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=strict)
class Names:
    """What the variants are called in the report.

    Attributes:
        theta0: the checkpoint with weight 1 - alpha.
        theta1: the checkpoint with weight alpha.
        merge: their merge, or the one checkpoint that is trained on where nothing is merged.
        text2img: the LoRA trained on captions.
        dreambooth: the LoRA trained on one instance prompt.
    """

    theta0: Text
    theta1: Text
    merge: Text
    text2img: Text
    dreambooth: Text


@dataclass(frozen=True, config=strict)
class CompareConfig:
    """How the comparison is shown.

    Attributes:
        title: of the page and of the main grid.
        names: what the variants are called.
        subject_prompts: positions in generate.prompts, from 0, of those that ask for what the LoRAs learnt: headline scores
            are taken on them, and sweeps show the first one.
        images_per_cell: pictures in a cell; the page can show all seeds.
        image_size: pixels of a picture's side in the PNG grids.
        resampling: how pictures are brought to that size; nearest keeps hard pixels.
        training_images: how many training images are shown.
        font: a .ttf or .otf file for the PNG grids; null is Pillow's own, and DejaVu Sans for a text beyond ASCII, which has
            Latin, Greek and Cyrillic letters. Characters that cannot be drawn are named in a warning.
    """

    title: Text
    names: Names
    subject_prompts: tuple[Index, ...]
    images_per_cell: Count
    image_size: Annotated[int, Field(ge=16, le=1024)]
    resampling: Literal["lanczos", "nearest"]
    training_images: Index
    font: FilePath | None

    def __post_init__(self) -> None:
        """Check that there is a prompt to show what was learnt."""
        if not self.subject_prompts:
            raise ValueError("subject_prompts: is empty: name the trigger in one of generate.prompts, or say which ask for it")
        if len(set(self.subject_prompts)) != len(self.subject_prompts):
            raise ValueError(f"subject_prompts: {list(self.subject_prompts)} holds a position twice")


def stage(config: CompareConfig, sweep: SweepConfig, images: Path, scores: Path, loras: Path, dataset: Path, out: Path) -> None:
    """Compare the variants of `sweep`.

    Args:
        config: the section of params.yaml named as the stage.
        sweep: the section `sweep`.
        images: the directory with the images of each variant, in a directory of its own.
        scores: the directory with the scores of each variant, a .csv file of its own.
        loras: the directory with the LoRAs and the histories of their training.
        dataset: the directory of the training images and their captions.
        out: the directory to write the report to.
    """
    from stages.report.contents import Comparison, Presentation, read_samples, read_training_images
    from stages.report.grids import Style
    from stages.report.histories import read_history
    from stages.report.report import font_problems, write_report
    from stages.report.results import read_results
    from stages.report.variants import KINDS, Sweep

    compared = Sweep(sweep.bases, sweep.alpha, {"text2img": sweep.rank, "dreambooth": sweep.dreambooth_rank})
    trained = [variant for variant in compared.variants if variant.rank is not None]
    comparison = Comparison(
        results=read_results(compared, images, scores),
        training=read_training_images(dataset, config.training_images),
        histories={variant: read_history(loras / variant.name / "history.csv") for variant in trained},
        samples={variant: read_samples(loras / variant.name / "samples") for variant in trained},
        presentation=Presentation(
            title=config.title,
            names={kind: getattr(config.names, kind) for kind in KINDS},
            subject_prompts=config.subject_prompts,
            images_per_cell=config.images_per_cell,
            style=Style(config.image_size, config.resampling, config.font),
        ),
    )
    for problem in font_problems(comparison):
        print(f"warning: compare.{problem}", file=sys.stderr)
    with atomic_directory(out) as folder:
        write_report(comparison, folder)


if __name__ == "__main__":
    run(stage)
