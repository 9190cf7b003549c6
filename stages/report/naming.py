"""What the variants are called for a reader: headings, labels and the formula of a merge."""

from dataclasses import dataclass

from stages.pipeline.variants import Variant
from stages.report.config import Names
from stages.report.sweep import Sweep


@dataclass(frozen=True)
class Namer:
    """What the variants are called for a reader.

    Attributes:
        names: what each kind is called.
        sweep: what is compared; a merge is written as a sum only where both originals are shown.
    """

    names: Names
    sweep: Sweep

    def heading(self, variant: Variant) -> tuple[str, str]:
        """Title and subtitle of a column."""
        name = self.names.of(variant.kind)
        if variant.alpha is None:
            return name, variant.kind
        if variant.rank is None:
            return name, self.formula(variant)
        return f"+ {name}", f"rank {variant.rank}"

    def sweep_heading(self, variant: Variant) -> tuple[str, str]:
        """Title and subtitle of a column of a sweep's grid, whose rows say the alpha."""
        return f"rank {variant.rank}" if variant.rank else "no LoRA", self.names.of(variant.kind)

    def label(self, variant: Variant) -> str:
        """One line that no other variant has."""
        return ", ".join(filter(None, (self.names.of(variant.kind), self.detail(variant))))

    def detail(self, variant: Variant) -> str:
        """What tells a variant from the others of its kind; empty where it is the only one."""
        alpha_matters = len(self.sweep.alpha) > 1 or (variant.rank is None and self.sweep.bases)
        alpha = f"alpha {variant.alpha:g}" if variant.alpha is not None and alpha_matters else ""
        rank = f"rank {variant.rank}" if variant.rank is not None else ""
        return ", ".join(filter(None, (alpha, rank)))

    def formula(self, merge: Variant) -> str:
        """The merge as a sum where both originals are shown, else what tells it from the other merges."""
        if merge.alpha is None or not {"theta0", "theta1"} <= set(self.sweep.bases):
            return self.detail(merge)
        return f"{1 - merge.alpha:.4g} {self.names.theta0} + {merge.alpha:g} {self.names.theta1}"
