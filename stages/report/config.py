"""The settings of the report: its title, what the variants are called, and how pictures are shown."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, FilePath
from pydantic.dataclasses import dataclass

from stages.measures.comparing import BY_KEY
from stages.pipeline.config import Count, Repo, Table, Text, strict
from stages.pipeline.variants import Kind

Index = Annotated[int, Field(ge=0)]


def _is_measure(key: str) -> str:
    """Refuse what is no measure."""
    if key not in BY_KEY:
        raise ValueError(f"is no measure: there are {', '.join(BY_KEY)}")
    return key


@dataclass(frozen=True, config=strict)
class Names:
    """What the variants are called in the report.

    Attributes:
        theta0: the checkpoint with weight 1 - alpha.
        theta1: the checkpoint with weight alpha.
        merge: their merge, or the one checkpoint that is trained on where nothing is merged.
        text2img: the LoRA trained on captions.
        dreambooth: the LoRA trained on one instance prompt.
        textual_inversion: the word that was taught.
    """

    theta0: Text
    theta1: Text
    merge: Text
    text2img: Text
    dreambooth: Text
    textual_inversion: Text

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
class CardConfig:
    """What the model cards of the LoRAs say that no result shows.

    Attributes:
        license: the LoRAs' own, as Hugging Face names it, such as "creativeml-openrail-m"; null says none.
        base_models: the ids, owner/name, of the models on the hub that the LoRAs rest on.
    """

    license: Text | None
    base_models: tuple[Repo, ...]


@dataclass(frozen=True, config=strict)
class ReportConfig(GridStyle):
    """What is compared, and how it is shown.

    Attributes:
        title: of the page and of the main grid.
        names: what the variants are called.
        subjects: of several subjects, what each is called in prompts, by the name of its image set; likeness is to the images
            of those that a prompt names.
        primary: the measure that matters most: it decides the main question, and which LoRA of a sweep is the best.
        contrasts: pairs of kinds, the first compared with the second; the first pair whose kinds there are is the main
            question.
        images_per_cell: pictures in a cell of a grid, each of another seed; the page can show all seeds.
        grid_prompts: prompts of each list that the main grid shows.
        training_images: how many training images are shown beside the grid; 0 for none, and no other of the dataset either.
        card: what model cards say beside the results.
        single_file: whether the page holds all of its pictures, reduced, and needs no other file; else they lie beside it.
    """

    title: Text
    names: Names
    subjects: Table[Text, Text]
    primary: Annotated[str, AfterValidator(_is_measure)]
    contrasts: Annotated[tuple[tuple[Kind, Kind], ...], Field(min_length=1)]
    images_per_cell: Count
    grid_prompts: Count
    training_images: Index
    card: CardConfig
    single_file: bool

    def __post_init__(self) -> None:
        """Refuse a pair of one kind, and one that stands twice."""
        for pair in self.contrasts:
            if pair[0] == pair[1]:
                raise ValueError(f"contrasts: given {list(pair)}: compares a kind with itself")
        if len({frozenset(pair) for pair in self.contrasts}) != len(self.contrasts):
            raise ValueError(f"contrasts: {[list(pair) for pair in self.contrasts]} holds a pair twice")
