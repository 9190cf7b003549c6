"""The variants of a model that are compared, and the names of their folders and files."""

from dataclasses import dataclass
from typing import Literal

from pydantic.dataclasses import dataclass as pydantic_dataclass

from stages.pipeline.config import SweepConfig, strict

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


@pydantic_dataclass(frozen=True, config=strict)
class Sweep(SweepConfig):
    """The section `sweep`, and the variants that it makes; the first alpha and the first rank of a kind lead."""

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of LoRA that are compared."""
        return [kind for kind in LORA_KINDS if self._ranks(kind)]

    @property
    def has_several_values(self) -> bool:
        """Whether more than one alpha or more than one rank is compared."""
        return len(self.alpha) > 1 or any(len(self._ranks(kind)) > 1 for kind in self.kinds)

    @property
    def variants(self) -> list[Variant]:
        """All of them: originals, merges, merges with a LoRA; alphas and ranks in rising order."""
        return [
            *(Variant(base) for base in self.bases),
            *(Variant("merge", alpha) for alpha in sorted(self.alpha)),
            *(variant for kind in self.kinds for row in self.rows(kind) for variant in row[1:]),
        ]

    @property
    def leading(self) -> list[Variant]:
        """One of each kind, at the leading alpha and rank: the columns of the main grid."""
        alpha = self.alpha[0]
        return [
            *(Variant(base) for base in self.bases),
            Variant("merge", alpha),
            *(Variant(kind, alpha, self._ranks(kind)[0]) for kind in self.kinds),
        ]

    def rows(self, kind: Kind) -> list[list[Variant]]:
        """The rows of a sweep's grid: for each alpha, in rising order, the merge and then its LoRAs of one kind by rank."""
        return [
            [Variant("merge", alpha), *(Variant(kind, alpha, rank) for rank in sorted(self._ranks(kind)))]
            for alpha in sorted(self.alpha)
        ]

    def _ranks(self, kind: Kind) -> tuple[int, ...]:
        return {"text2img": self.rank, "dreambooth": self.dreambooth_rank}.get(kind, ())
