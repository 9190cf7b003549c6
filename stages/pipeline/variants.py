"""The variants of a model that are drawn and compared: what they are called, and where their files lie. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["theta0", "theta1", "merge", "text2img", "dreambooth"]
LORA_KINDS: tuple[Kind, ...] = ("text2img", "dreambooth")


@dataclass(frozen=True)
class Variant:
    """An original, a merge, or a merge with a LoRA.

    Attributes:
        kind: what it is.
        alpha: weight of theta1 in the merge; None for an original.
        rank: of the LoRA; None without one.
    """

    kind: Kind
    alpha: float | None = None
    rank: int | None = None

    @property
    def name(self) -> str:
        """Name of its folders and files."""
        if self.alpha is None:
            return self.kind
        merge = f"a{self.alpha}"
        return merge if self.rank is None else f"{self.kind}-{merge}-r{self.rank}"

    @property
    def key(self) -> str:
        """Its name in metrics.json, without dots: DVC joins the keys of nested metrics by them."""
        return self.name.replace(".", "_")

    @property
    def merge(self) -> "Variant":
        """The same merge without the LoRA."""
        return Variant("merge", self.alpha)

    @property
    def model(self) -> str:
        """The folder of the model that it is drawn by, without its LoRA."""
        return f"data/base/{self.name}" if self.alpha is None else f"data/merged/{self.merge.name}"

    @property
    def trained(self) -> str:
        """The folder of its LoRA, or of its model where it has none."""
        return self.model if self.rank is None else f"data/lora/{self.name}"


def variants_of(bases: Iterable[Kind], alphas: Sequence[float], ranks: Mapping[Kind, Sequence[int]]) -> list[Variant]:
    """All variants: originals, merges, and of each kind of LoRA one for each alpha and rank."""
    return [
        *map(Variant, bases),
        *(Variant("merge", alpha) for alpha in alphas),
        *(Variant(kind, alpha, rank) for kind, of_kind in ranks.items() for alpha in alphas for rank in of_kind),
    ]


def variant_cell(variant: Variant, lora_scale: Any) -> dict[str, Any]:
    """What dvc.yaml's stages generate and score take of a variant: folders, and the options that its LoRA adds to a command."""
    lora = {} if variant.rank is None else {"lora": variant.trained, "lora-scale": lora_scale}
    return {"model": variant.model, "trained": variant.trained, "lora": lora}


def export_cell(variant: Variant) -> tuple[str, dict[str, str]]:
    """The name of an exported file, and what dvc.yaml's stage export takes: the folder, and the setting that it depends on."""
    if variant.rank is None:
        return f"model-{variant.name}", {"source": variant.model, "setting": "export.dtype"}
    return variant.name, {"source": variant.trained, "setting": "export.lora_dtype"}
