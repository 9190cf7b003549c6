"""The settings of the report: its title, what the variants are called, and how pictures are shown."""

from typing import Annotated, Literal

from pydantic import Field, FilePath
from pydantic.dataclasses import dataclass

from stages.pipeline.config import Count, Text, strict
from stages.pipeline.variants import Kind

Index = Annotated[int, Field(ge=0)]
"""A position in a list, counted from 0."""


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

    def of(self, kind: Kind) -> str:
        """The name of a kind of variant."""
        return getattr(self, kind)


@dataclass(frozen=True, config=strict)
class GridStyle:
    """How pictures and letters are drawn in the PNG grids.

    Attributes:
        image_size: pixels of a picture's side.
        resampling: how pictures are brought to that size; nearest keeps hard pixels.
        font: a .ttf or .otf file; null is Pillow's own font, and DejaVu Sans for a text beyond ASCII, which has Latin, Greek
            and Cyrillic letters. Characters that cannot be drawn are named in a warning.
    """

    image_size: Annotated[int, Field(ge=16, le=1024)]
    resampling: Literal["lanczos", "nearest"]
    font: FilePath | None


@dataclass(frozen=True, config=strict)
class ReportConfig(GridStyle):
    """How the comparison is shown.

    Attributes:
        title: of the page and of the main grid.
        names: what the variants are called.
        subject_prompts: positions in generate.prompts, from 0, of those that ask for what the LoRAs learnt: headline scores
            are taken on them, and sweeps show the first one.
        images_per_cell: pictures in a cell of a grid, each of another seed; the page can show all seeds.
        training_images: how many training images are shown; 0 for none.
    """

    title: Text
    names: Names
    subject_prompts: tuple[Index, ...]
    images_per_cell: Count
    training_images: Index

    def __post_init__(self) -> None:
        """Check that there is a prompt to show what was learnt, and that none is named twice."""
        if not self.subject_prompts:
            raise ValueError("subject_prompts: is empty: name the trigger in one of generate.prompts, or say which ask for it")
        if len(set(self.subject_prompts)) != len(self.subject_prompts):
            raise ValueError(f"subject_prompts: {list(self.subject_prompts)} holds a position twice")
