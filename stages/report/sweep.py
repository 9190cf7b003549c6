"""The sweep that is compared: which variants there are, in which order, and which of them lead. Imports no torch."""

from pydantic.dataclasses import dataclass

from stages.pipeline.config import SweepConfig, strict
from stages.pipeline.variants import LORA_KINDS, Kind, Variant, variants_of


@dataclass(frozen=True, config=strict)
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
        return variants_of(self.bases, sorted(self.alpha), {kind: sorted(self._ranks(kind)) for kind in self.kinds})

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
