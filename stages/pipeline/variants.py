"""The variants of a model that are drawn and compared: what they are called, and where their files lie. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from stages.pipeline.wording import counted

Kind = Literal["theta0", "theta1", "merge", "text2img", "dreambooth", "textual_inversion"]
TRAINED_KINDS: tuple[Kind, ...] = ("text2img", "dreambooth", "textual_inversion")
DATASET = "dataset"
"""What the embeddings are called of the images that are learnt from, and of those held out."""


@dataclass(frozen=True)
class Variant:
    """An original, a merge, or a merge with a LoRA or with a word that it was taught (textual inversion).

    Attributes:
        kind: what it is.
        alpha: weight of theta1 in the merge; None for an original.
        rank: of the LoRA, or of a word the number of its vectors: how much there is to be trained; None without either.
        seed: of the training; None without one.
        step: optimizer steps after which what is trained was kept; None for the end of its training.
        lora_scale: the factor on what the LoRA adds.
    """

    kind: Kind
    alpha: float | None = None
    rank: int | None = None
    seed: int | None = None
    step: int | None = None
    lora_scale: float = 1.0

    @property
    def name(self) -> str:
        """Name of its folders and files: all that it is, so that no other sweep calls it otherwise."""
        if self.alpha is None:
            return self.kind
        merge = f"a{self.alpha}"
        if self.rank is None:
            return merge
        step = "" if self.step is None else f"-step{self.step}"
        scale = "" if self.lora_scale == 1 else f"-x{in_full(self.lora_scale)}"
        letter = "v" if self.is_word else "r"
        return f"{self.kind}-{merge}-{letter}{self.rank}-s{self.seed}{step}{scale}"

    @property
    def is_word(self) -> bool:
        """Whether it was taught a word."""
        return self.kind == "textual_inversion"

    @property
    def size(self) -> str:
        """Its rank or its vectors, in words; "" without a training."""
        if self.rank is None:
            return ""
        return counted(self.rank, "vector") if self.is_word else f"rank {self.rank}"

    @property
    def key(self) -> str:
        """Its name in metrics.json, without dots: DVC joins the keys of nested metrics by them."""
        return self.name.replace(".", "_")

    @property
    def merge(self) -> "Variant":
        """The same merge without the LoRA."""
        return Variant("merge", self.alpha)

    @property
    def training(self) -> "Variant":
        """The end of the training that its LoRA comes from, at full strength."""
        return replace(self, step=None, lora_scale=1.0)

    @property
    def model(self) -> str:
        """The folder of the model that it is drawn by, without its LoRA."""
        return f"data/base/{self.name}" if self.alpha is None else f"data/merged/{self.merge.name}"

    @property
    def images(self) -> str:
        """The folder of what it drew."""
        return f"data/images/{self.name}"

    @property
    def trained(self) -> str:
        """The folder of its LoRA, or of its model where it has none."""
        if self.rank is None:
            return self.model
        folder = f"data/lora/{self.training.name}"
        return folder if self.step is None else f"{folder}/{kept_folder(self.step)}"


def in_full(number: float) -> str:
    """A number as short as it can be, and so that no other is written alike."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


@dataclass(frozen=True)
class Trainings:
    """The trainings of one kind in a sweep.

    Attributes:
        ranks: of the LoRAs; of words, the numbers of their vectors.
        seeds: of the trainings.
        steps: after which LoRAs are kept, beside the end.
    """

    ranks: Sequence[int]
    seeds: Sequence[int]
    steps: Sequence[int] = ()


def kept_folder(step: int) -> str:
    """The folder, in that of a training, of the LoRA that is kept after so many optimizer steps."""
    return f"step-{step}"


def kept_steps(keep_every: int | None, max_train_steps: int) -> list[int]:
    """The optimizer steps after which a LoRA is kept, beside the end of the training."""
    return [] if keep_every is None else list(range(keep_every, max_train_steps, keep_every))


def variants_of(
    bases: Iterable[Kind], alphas: Sequence[float], trainings: Mapping[Kind, Trainings], lora_scales: Sequence[float]
) -> list[Variant]:
    """All variants: originals, merges, and of each kind that is trained one for each alpha, rank, seed, kept step and strength.

    A word has no strength.
    """
    return [
        *map(Variant, bases),
        *(Variant("merge", alpha) for alpha in alphas),
        *(
            Variant(kind, alpha, rank, seed, step, scale)
            for kind, of_kind in trainings.items()
            for alpha, rank, seed in product(alphas, of_kind.ranks, of_kind.seeds)
            for step, scale in product((*of_kind.steps, None), (1.0,) if kind == "textual_inversion" else lora_scales)
        ),
    ]


def variant_cell(variant: Variant) -> dict[str, Any]:
    """What dvc.yaml's stage generate takes of a variant: folders, and the options that what was trained adds to a command."""
    if variant.is_word:
        return {"model": variant.model, "trained": variant.trained, "lora": {"embedding": variant.trained}}
    lora = {} if variant.rank is None else {"lora": variant.trained, "lora-scale": variant.lora_scale}
    return {"model": variant.model, "trained": variant.trained, "lora": lora}


def export_cell(variant: Variant) -> tuple[str, dict[str, str]]:
    """The name of an exported file, and what dvc.yaml's stage export takes: the folder, and the setting that it depends on.

    A merge gets no thumbnail of what it drew: a new prompt would write gigabytes again.
    """
    if variant.rank is None:
        return f"model-{variant.name}", {"source": variant.model, "setting": "export.dtype"}
    return variant.training.name, {"source": variant.training.trained, "setting": "export.lora_dtype"}
