"""What the variants are called for a reader: headings, labels and the formula of a merge."""

from collections.abc import Sequence
from dataclasses import dataclass

from stages.pipeline.variants import Variant, in_full
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
        return f"+ {name}", ", ".join(filter(None, (variant.size, _way(variant))))

    def column(self, table: str, variant: Variant) -> tuple[str, str]:
        """Title and subtitle of a column of one of `Sweep.tables`, whose rows say the rest."""
        name = self.names.of(variant.kind)
        if variant.rank is None:
            return "no LoRA", name
        end = "the end" if variant.step is None else f"step {variant.step}"
        return {"sweep": variant.size, "strength": end, "seed": f"seed {variant.seed}"}[table], name

    def row(self, table: str, variants: Sequence[Variant]) -> str:
        """Heading of a row of one of `Sweep.tables`, which begins with the merge without a LoRA."""
        if table == "strength":
            return f"strength {in_full(variants[-1].lora_scale)}"
        return self.formula(variants[0])

    def arm(self, first: Variant) -> str:
        """One line for what is compared as one thing, whatever its training seeds."""
        label = self.label(first)
        return label.removesuffix(f", seed {first.seed}") if first.seed is not None else label

    def label(self, variant: Variant) -> str:
        """One line that no other variant has."""
        return ", ".join(filter(None, (self.names.of(variant.kind), self.detail(variant))))

    def detail(self, variant: Variant) -> str:
        """What tells a variant from the others of its kind; empty where it is the only one."""
        alpha_matters = len(self.sweep.alpha) > 1 or (variant.rank is None and self.sweep.bases)
        alpha = f"alpha {variant.alpha:g}" if variant.alpha is not None and alpha_matters else ""
        if variant.rank is None:
            return alpha
        seed = f"seed {variant.seed}" if len(self.sweep.seed) > 1 else ""
        return ", ".join(filter(None, (alpha, variant.size, _way(variant), seed)))

    def formula(self, merge: Variant) -> str:
        """The merge as a sum where both originals are shown, else what tells it from the other merges."""
        if merge.alpha is None or not {"theta0", "theta1"} <= set(self.sweep.bases):
            return self.detail(merge)
        return f"{1 - merge.alpha:.4g} {self.names.theta0} + {merge.alpha:g} {self.names.theta1}"


def _way(variant: Variant) -> str:
    """How far a LoRA was trained and how strong it is, where that is not the whole way and strength 1."""
    step = "" if variant.step is None else f"step {variant.step}"
    return ", ".join(filter(None, (step, "" if variant.lora_scale == 1 else f"strength {in_full(variant.lora_scale)}")))
