"""The variants of a model that are compared, and what to call them for a reader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["theta0", "theta1", "merge", "text2img", "dreambooth"]
KINDS: tuple[Kind, ...] = ("theta0", "theta1", "merge", "text2img", "dreambooth")
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


@dataclass(frozen=True)
class Sweep:
    """The values that are compared.

    Attributes:
        bases: originals, of theta0 and theta1.
        alphas: merge weights; the first one leads: the main grid shows it.
        ranks: for each kind of LoRA its ranks, the leading one first.
    """

    bases: Sequence[Kind]
    alphas: Sequence[float]
    ranks: Mapping[Kind, Sequence[int]]

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of LoRA that are compared."""
        return [kind for kind in LORA_KINDS if self.ranks.get(kind)]

    @property
    def sampled(self) -> bool:
        """Whether more than one alpha or rank is compared."""
        return len(self.alphas) > 1 or any(len(self.ranks[kind]) > 1 for kind in self.kinds)

    @property
    def variants(self) -> list[Variant]:
        """All of them: originals, merges, merges with a LoRA; alphas and ranks in rising order."""
        return [
            *(Variant(base) for base in self.bases),
            *(Variant("merge", alpha) for alpha in sorted(self.alphas)),
            *(variant for kind in self.kinds for line in self.lines(kind) for variant in line[1:]),
        ]

    @property
    def leading(self) -> list[Variant]:
        """One of each kind: the columns of the main grid."""
        alpha = self.alphas[0]
        return [
            *(Variant(base) for base in self.bases),
            Variant("merge", alpha),
            *(Variant(kind, alpha, self.ranks[kind][0]) for kind in self.kinds),
        ]

    def lines(self, kind: Kind) -> list[list[Variant]]:
        """For each alpha, in rising order, the merge and its LoRAs of one kind by rank: the rows of a sweep's grid."""
        return [
            [Variant("merge", alpha), *(Variant(kind, alpha, rank) for rank in sorted(self.ranks[kind]))]
            for alpha in sorted(self.alphas)
        ]


@dataclass(frozen=True)
class Namer:
    """Words for variants.

    Attributes:
        names: what each kind is called, such as {"theta0": "toon"}.
        sweep: what is compared; a merge is written as a sum only where both originals are shown.
    """

    names: Mapping[Kind, str]
    sweep: Sweep

    def heading(self, variant: Variant) -> tuple[str, str]:
        """Title and subtitle of a column."""
        name = self.names[variant.kind]
        if variant.alpha is None:
            return name, variant.kind
        if variant.rank is None:
            return name, self.formula(variant)
        return f"+ {name}", f"rank {variant.rank}"

    def sweep_heading(self, variant: Variant) -> tuple[str, str]:
        """Title and subtitle of a column of a sweep's grid, whose rows say the alpha."""
        return f"rank {variant.rank}" if variant.rank else "no LoRA", self.names[variant.kind]

    def label(self, variant: Variant) -> str:
        """One line that no other variant has."""
        return ", ".join(filter(None, (self.names[variant.kind], self.detail(variant))))

    def detail(self, variant: Variant) -> str:
        """What tells a variant from the others of its kind; empty where it is the only one."""
        said = len(self.sweep.alphas) > 1 or (variant.rank is None and self.sweep.bases)
        alpha = f"alpha {variant.alpha:g}" if variant.alpha is not None and said else ""
        rank = f"rank {variant.rank}" if variant.rank is not None else ""
        return ", ".join(filter(None, (alpha, rank)))

    def formula(self, merge: Variant) -> str:
        """The merge as a sum where both originals are shown, else what tells it from the other merges."""
        if merge.alpha is None or not {"theta0", "theta1"} <= set(self.sweep.bases):
            return self.detail(merge)
        return f"{1 - merge.alpha:.4g} {self.names['theta0']} + {merge.alpha:g} {self.names['theta1']}"
