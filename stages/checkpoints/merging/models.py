"""Merging models: which tensors meet, with which weight, and what is written down about it.

Directions differ between tools; here theta0 and theta1 are as in `theta = (1 - alpha) * theta0 + alpha * theta1`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from stages.checkpoints.components import Component
from stages.checkpoints.files.chunks import computed
from stages.checkpoints.files.tensors import FLOATS, LazyTensor, LazyTensors, Recipe, listed
from stages.checkpoints.keys.architecture import architecture
from stages.checkpoints.keys.blocks import BlockWeights, block_alphas
from stages.checkpoints.keys.key_maps import component_specs
from stages.checkpoints.merging.methods import MERGE_METHODS, Array, Measured, Setting
from stages.checkpoints.model import Model

TextEncoderPolicy = Literal["merged", "theta0", "theta1"]
MERGED_COMPONENTS = ("unet", "text_encoder")
DIRECTION = "alpha is the weight of theta1: 0 is theta0, 1 is theta1"

_NAMES = ("theta0", "theta1", "theta2")
_COUNTS = {1: "takes theta0 as it is", 2: "merges two models", 3: "merges three models"}


@dataclass(frozen=True)
class MergePlan:
    """How models become one.

    Attributes:
        method: A name in MERGE_METHODS.
        alpha: Weight of theta1, in [0, 1].
        text_encoder: Merged by the same method, or taken whole from one model.
        unet_alpha: Instead of `alpha` in the UNet; None for the same.
        text_encoder_alpha: Instead of `alpha` in the text encoder; None for the same.
        blocks: Instead of both in some or all blocks of the UNet; see `blocks.block_alphas`. None for none.
        density: Part of a difference that ties and dare keep, in (0, 1].
        seed: Of dare's random masks.
    """

    method: str
    alpha: float
    text_encoder: TextEncoderPolicy
    unet_alpha: float | None = None
    text_encoder_alpha: float | None = None
    blocks: BlockWeights | None = None
    density: float = 1.0
    seed: int = 0

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> "MergePlan":
        """The plan by which a file was made, from the recipe in its metadata."""
        return cls(**{field.name: recipe[field.name] for field in fields(cls)})


def merge_models(theta0: Model, theta1: Model | None, plan: MergePlan, theta2: Model | None = None) -> Model:
    """The merged UNet and text encoder, computed as they are written. The VAE is not among them.

    Raises:
        ValueError: The models are of different architectures or predict different things, there is one too few or many for
            the method, one lacks what is taken of it, or a block with a weight is not there.
    """
    models = _checked([theta0, theta1, theta2], plan)
    merged = {
        name: _merge_component(name, [model.components.get(name) for model in models], plan, _taken(name, plan))
        for name in MERGED_COMPONENTS
    }
    words = models[_taken("text_encoder", plan)[0]]
    return replace(theta0, components=merged, absent={}, tokenizer=words.tokenizer or words.directory)


def _taken(component: str, plan: MergePlan) -> Sequence[int]:
    """Which of the models a component is made of."""
    count = MERGE_METHODS[plan.method].models
    if count == 1 or component != "text_encoder" or plan.text_encoder == "merged":
        return range(count)
    return (_NAMES.index(plan.text_encoder),)


def merge_vaes(theta0: Component, theta1: Component, alpha: float) -> Component:
    """The weighted sum of two VAEs, alpha being the weight of theta1's.

    Raises:
        ValueError: They are of different architectures.
    """
    _check_same_shapes("vae", theta0.tensors, theta1.tensors, "theta1")
    return _merge_component("vae", [theta0, theta1], MergePlan("weighted_sum", alpha, "merged"), (0, 1))


def _merged(originals: Sequence[LazyTensor], plan: MergePlan, key: str, alpha: float) -> LazyTensor:
    if originals[0].dtype not in FLOATS:
        return originals[0]
    method = MERGE_METHODS[plan.method]
    if method.models == 1:
        return originals[0]

    def merge(start: int, measured: Measured, *thetas: Array) -> Array:
        return method.function(*thetas, Setting(key, alpha, plan.density, plan.seed, start, measured, overwrite=True))

    return computed(originals, merge, method.measure and partial(method.measure, Setting(key, alpha, plan.density, plan.seed)))


def _merge_component(name: str, given: Sequence[Component | None], plan: MergePlan, taken: Sequence[int]) -> Component:
    recipe = _recipe(plan) | {theta: original.recipe for theta, original in zip(_NAMES, given, strict=False) if original}
    originals = [original for original in (given[index] for index in taken) if original]
    if len(originals) == 1:
        return replace(originals[0], recipe=recipe)
    alphas = _alphas(name, originals[0], plan)
    tensors = {
        key: _merged([original.tensors[key] for original in originals], plan, f"{name}.{key}", alphas[key])
        for key in originals[0].tensors
    }
    return replace(originals[0], tensors=tensors, recipe=recipe)


def _alphas(name: str, original: Component, plan: MergePlan) -> dict[str, float]:
    """The weight of theta1 in every tensor of a component."""
    own = plan.unet_alpha if name == "unet" else plan.text_encoder_alpha
    alphas = dict.fromkeys(original.tensors, plan.alpha if own is None else own)
    if name == "unet" and plan.blocks is not None:
        alphas |= block_alphas(plan.blocks, component_specs(name, original.config))
    return alphas


def _recipe(plan: MergePlan) -> dict[str, Any]:
    method = MERGE_METHODS[plan.method]
    blocks = dict(plan.blocks) if isinstance(plan.blocks, Mapping) else plan.blocks and list(plan.blocks)
    about = {"direction": DIRECTION, "formula": method.formula, "method_source": method.source, "numpy": np.__version__}
    return asdict(replace(plan, blocks=None)) | {"blocks": blocks} | about


def _checked(given: Sequence[Model | None], plan: MergePlan) -> list[Model]:
    """The models that the method is made of, all of one kind, each with what is taken of it."""
    method = plan.method
    needed = MERGE_METHODS[method].models
    for name, model in zip(_NAMES[:needed], given, strict=False):
        if model is None:
            raise ValueError(f"method {method} {_COUNTS[needed]}, and there is no {name}: name one, or choose another method")
    for name, model in zip(_NAMES[needed:], given[needed:], strict=True):
        if model is not None:
            raise ValueError(
                f"method {method} {_COUNTS[needed]}, and there is a {name}: set it to null, or choose another method"
            )
    models = [model for model in given if model is not None]
    _check_holds(models, plan)
    for name, model in zip(_NAMES[1:needed], models[1:], strict=True):
        _check_same_kind(models[0], model, name, [part for part in MERGED_COMPONENTS if len(_taken(part, plan)) > 1])
    return models


def _check_holds(models: Sequence[Model], plan: MergePlan) -> None:
    for component in MERGED_COMPONENTS:
        for index in _taken(component, plan):
            if component not in models[index].components:
                raise ValueError(
                    f"{_NAMES[index]} ({models[index].directory}) holds no {component}, or none that is finite: take that of "
                    "another model, or fill it in where the checkpoint is read"
                )


def _check_same_kind(theta0: Model, other: Model, name: str, merged: Sequence[str]) -> None:
    kinds = [
        architecture({key: tensor.shape for key, tensor in model.components["unet"].tensors.items()})
        for model in (theta0, other)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(f"theta0 is {kinds[0]}, {name} is {kinds[1]}: merge only checkpoints of one architecture")
    if theta0.prediction_type != other.prediction_type:
        raise ValueError(
            f"theta0 predicts {theta0.prediction_type}, {name} predicts {other.prediction_type}: "
            "merge only checkpoints of one prediction_type"
        )
    if theta0.prediction.rescale_betas_zero_snr != other.prediction.rescale_betas_zero_snr:
        one = "theta0" if theta0.prediction.rescale_betas_zero_snr else name
        raise ValueError(
            f"only {one} was trained with zero terminal SNR (ztsnr, rescale_betas_zero_snr): merge only checkpoints of one "
            "noise schedule"
        )
    for component in merged:
        _check_same_shapes(component, theta0.components[component].tensors, other.components[component].tensors, name)


def _check_same_shapes(component: str, theta0: LazyTensors, other: LazyTensors, name: str) -> None:
    lonely = sorted(theta0.keys() ^ other.keys())
    if lonely:
        raise ValueError(
            f"{component}: only one of theta0 and {name} has {listed(lonely)}: merge only models of one architecture"
        )
    for key in sorted(theta0):
        if theta0[key].shape != other[key].shape:
            raise ValueError(
                f"{component}: {key}: theta0 has shape {theta0[key].shape}, {name} has {other[key].shape}; "
                "merge only checkpoints of one architecture"
            )
