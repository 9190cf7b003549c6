"""How models are merged: what conf/merge sets, and what a recipe says of it."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from stages.pipeline.config import Alpha, Seed, strict

Block = Annotated[str, Field(pattern=r"^((IN|OUT)\d\d|M00)$")]
Blocks = Annotated[
    Annotated[dict[Block, Alpha], Tag("names")] | Annotated[tuple[Alpha, ...], Tag("list")],
    Discriminator(lambda value: "names" if isinstance(value, dict) else "list"),
]
"""Weights of theta1 by the name of a block, or of all blocks in a list.

Which of the two is meant is decided before anything is checked, so that a wrong value is refused once, not once for each.
"""


@dataclass(frozen=True, config=strict)
class ComponentAlpha:
    """Weights of theta1 in [0, 1] instead of the sweep's; null for the sweep's."""

    unet: Alpha | None
    text_encoder: Alpha | None


@dataclass(frozen=True, config=strict)
class MergeConfig:
    """How to merge.

    Attributes:
        method: What is computed; conf/merge has the formulas, stages/checkpoints/merging/methods.py their sources.
        component_alpha: Weights of theta1 for whole components.
        blocks: Weights of theta1 for blocks of the UNet: some by name, or all in a list; null for none.
        density: Part of a difference that ties and dare keep, in (0, 1].
        seed: Of what dare drops.
        text_encoder: Merged like the UNet, or taken whole from one of the originals.
        rescale_betas_zero_snr: Whether the merge's noise schedule is made to end in noise alone, for what is trained on it and
            what it draws (Lin et al. 2023, arXiv:2305.08891); the weights are the same. It has to predict v.
        dtype: Of the weights written; the merge itself is computed in float32 and rounded once.
    """

    method: Literal["weighted_sum", "add_difference", "slerp", "ties", "dare", "passthrough"]
    component_alpha: ComponentAlpha
    blocks: Blocks | None
    density: Annotated[float, Field(gt=0, le=1)]
    seed: Seed
    text_encoder: Literal["merged", "theta0", "theta1"]
    rescale_betas_zero_snr: bool
    dtype: Literal["float16", "float32"]


WEIGHTED_SUM = MergeConfig(
    method="weighted_sum",
    component_alpha=ComponentAlpha(unet=None, text_encoder=None),
    blocks=None,
    density=1.0,
    seed=0,
    text_encoder="merged",
    rescale_betas_zero_snr=False,
    dtype="float32",
)
"""The plain merge of two models, all of it with one weight, for those who have no section of params.yaml."""
