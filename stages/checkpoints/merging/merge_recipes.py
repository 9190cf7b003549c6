"""What is written down about a merge, in the metadata of its weights, and reading it again."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.checkpoints.files.tensors import Recipe
from stages.checkpoints.merging.config import MergeConfig
from stages.checkpoints.merging.methods import MERGE_METHODS
from stages.pipeline.config import validate

DIRECTION = "alpha is the weight of theta1: 0 is theta0, 1 is theta1"


def merge_recipe(config: MergeConfig, alpha: float) -> dict[str, Any]:
    """The settings of a merge and what they mean, without the models that it is made of.

    Args:
        config: How they were merged. Its dtype is not in the recipe: the written tensors have it.
        alpha: The weight of theta1, in [0, 1].
    """
    method = MERGE_METHODS[config.method]
    return {
        "method": config.method,
        "alpha": alpha,
        "unet_alpha": config.component_alpha.unet,
        "text_encoder_alpha": config.component_alpha.text_encoder,
        "blocks": dict(config.blocks) if isinstance(config.blocks, Mapping) else config.blocks and list(config.blocks),
        "density": config.density,
        "seed": config.seed,
        "text_encoder": config.text_encoder,
        "formula": method.formula,
        "method_source": method.source,
        "direction": DIRECTION,
        "numpy": np.__version__,
    }


def is_merge_recipe(recipe: Recipe) -> bool:
    """Whether a recipe is that of a merged component."""
    return recipe.get("method") in MERGE_METHODS


def read_merge_recipe(recipe: Recipe, dtype: str) -> tuple[MergeConfig, float]:
    """How models were merged, and the weight of theta1.

    Args:
        recipe: From the metadata of merged weights.
        dtype: Of these weights, float16 or float32.

    Raises:
        ValueError: A setting is missing, or not one that a merge takes.
    """
    settings = {name: recipe.get(name) for name in ("method", "blocks", "density", "seed", "text_encoder")}
    alphas = {"unet": recipe.get("unet_alpha"), "text_encoder": recipe.get("text_encoder_alpha")}
    config = validate(
        "its recipe", MergeConfig, {**settings, "component_alpha": alphas, "rescale_betas_zero_snr": False, "dtype": dtype}
    )
    alpha = recipe.get("alpha")
    if not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise ValueError(f"its recipe.alpha: given {alpha!r}: a number from 0 to 1")
    return config, alpha
