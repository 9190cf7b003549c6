"""The sweep that is compared: which variants there are, in which order, and which of them lead. Imports no torch."""

from collections.abc import Mapping
from dataclasses import replace

from pydantic.dataclasses import dataclass

from stages.pipeline.config import SweepConfig, strict
from stages.pipeline.variants import TRAINED_KINDS, Kind, Trainings, Variant, variants_of


@dataclass(frozen=True, config=strict)
class Sweep(SweepConfig):
    """The section `sweep`, and the variants that it makes; the first value of each axis leads, and the end of a training."""

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of training that are compared."""
        return [kind for kind in TRAINED_KINDS if self._ranks(kind)]

    @property
    def has_several_values(self) -> bool:
        """Whether any axis has more than one value."""
        return any(len(rows) > 1 or len(rows[0]) > 2 for kind in self.kinds for rows in self.tables(kind).values())

    @property
    def variants(self) -> list[Variant]:
        """All of them: originals, merges, merges with a LoRA; alphas, ranks, seeds and strengths in rising order."""
        return variants_of(self.bases, sorted(self.alpha), self._trainings(), sorted(self.lora_scale))

    @property
    def trained(self) -> list[Variant]:
        """The end of each training."""
        return list(dict.fromkeys(variant.training for variant in self.variants if variant.rank is not None))

    @property
    def arms(self) -> dict[Variant, list[Variant]]:
        """What is compared as one thing: the variants that differ in nothing but the training seed, by the first of them."""
        arms: dict[Variant, list[Variant]] = {}
        for variant in self.variants:
            first = variant if variant.seed is None else replace(variant, seed=self.seed[0])
            arms.setdefault(first, []).append(variant)
        return arms

    @property
    def leading(self) -> list[Variant]:
        """One of each kind, at the leading values: the columns of the main grid."""
        return [*map(Variant, self.bases), Variant("merge", self.alpha[0]), *map(self.leading_lora, self.kinds)]

    def leading_lora(self, kind: Kind) -> Variant:
        """The LoRA, or the word, of one kind at the leading values."""
        scale = 1.0 if kind == "textual_inversion" else self.lora_scale[0]
        return Variant(kind, self.alpha[0], self._ranks(kind)[0], self.seed[0], None, scale)

    def ranked(self, kind: Kind) -> list[Variant]:
        """The LoRAs of one kind that differ in nothing but the rank, rising, at the other leading values."""
        return [replace(self.leading_lora(kind), rank=rank) for rank in sorted(self._ranks(kind))]

    def candidates(self, kind: Kind) -> list[Variant]:
        """The arms of one kind: what the best of them is chosen from."""
        return [first for first in self.arms if first.kind == kind]

    def tables(self, kind: Kind) -> Mapping[str, list[list[Variant]]]:
        """The tables of the sweep of one kind, by what they show; each row begins with the merge without a LoRA.

        "sweep": alpha down, rank across, always. "strength": strength down, kept steps across; "seed": training seeds across;
        both at the other leading values, and only where there are several values.
        """
        first = self.leading_lora(kind)
        tables = {
            "sweep": [
                [Variant("merge", alpha), *(replace(first, alpha=alpha, rank=rank) for rank in sorted(self._ranks(kind)))]
                for alpha in sorted(self.alpha)
            ]
        }
        steps = (*self.kept_steps[kind], None)  # pyright: ignore[reportArgumentType]
        scales = (1.0,) if first.is_word else self.lora_scale
        if len(steps) > 1 or len(scales) > 1:
            tables["strength"] = [
                [first.merge, *(replace(first, step=step, lora_scale=scale) for step in steps)] for scale in sorted(scales)
            ]
        if len(self.seed) > 1:
            tables["seed"] = [[first.merge, *(replace(first, seed=seed) for seed in self.seed)]]
        return tables

    def _trainings(self) -> dict[Kind, Trainings]:
        return {
            kind: Trainings(sorted(self._ranks(kind)), self.seed, self.kept_steps[kind])  # pyright: ignore[reportArgumentType]
            for kind in self.kinds
        }

    def _ranks(self, kind: Kind) -> tuple[int, ...]:
        return {"text2img": self.rank, "dreambooth": self.dreambooth_rank, "textual_inversion": self.vectors}.get(kind, ())
