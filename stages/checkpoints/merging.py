"""Merging models: each method is one small function over tensors, with its source.

Directions differ between tools; here theta0 and theta1 are as in `theta = (1 - alpha) * theta0 + alpha * theta1`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from stages.checkpoints.dialects import architecture
from stages.checkpoints.model import Component, Model
from stages.checkpoints.tensors import Array, LazyTensor, LazyTensors, listed

_TOO_FEW = "merges two models, and there is no theta1: name one, or choose passthrough"
_TOO_MANY = "takes theta0 as it is, and there is a theta1: set it to null, or choose a method that merges"
TextEncoderPolicy = Literal["merged", "theta0", "theta1"]


class MergeMethod(NamedTuple):
    """One way to make a model of others.

    Attributes:
        function: Of theta0's tensor, theta1's tensor (float32, same shape) and alpha. None: theta0 is taken as it is.
        source: Where the method comes from.
    """

    function: Callable[[Array, Array, float], Array] | None
    source: str


def weighted_sum(theta0: Array, theta1: Array, alpha: float) -> Array:
    """Interpolate linearly between two models: Wortsman et al. 2021, section 3 (arXiv:2109.01903).

    Args:
        theta0: A tensor of the first model, float32.
        theta1: The same tensor of the second model, float32.
        alpha: Weight of theta1, in [0, 1].
    """
    return (1 - alpha) * theta0 + alpha * theta1


MERGE_METHODS = {
    "weighted_sum": MergeMethod(weighted_sum, "arXiv:2109.01903, section 3"),
    "passthrough": MergeMethod(None, "no merge: theta0 as it is"),
}


@dataclass(frozen=True)
class MergePlan:
    """How two models become one.

    Attributes:
        method: A name in MERGE_METHODS.
        alpha: Weight of theta1, in [0, 1].
        text_encoder: Merged by the same method, or taken whole from one model.
    """

    method: str
    alpha: float
    text_encoder: TextEncoderPolicy


def merge_models(theta0: Model, theta1: Model | None, plan: MergePlan) -> Model:
    """The merged UNet and text encoder, computed tensor by tensor as they are read. The VAE is not among them.

    Raises:
        ValueError: The models are of different architectures or predict different things, or there is one too few or many.
    """
    if (theta1 is None) != (MERGE_METHODS[plan.method].function is None):
        reason = _TOO_FEW if theta1 is None else _TOO_MANY
        raise ValueError(f"method {plan.method} {reason}")
    if theta1 is not None:
        _check_same_kind(theta0, theta1)
    policies: dict[str, TextEncoderPolicy] = {"unet": "merged", "text_encoder": plan.text_encoder}
    merged = {
        name: _merge_component([model.components[name] for model in (theta0, theta1) if model], plan, policy)
        for name, policy in policies.items()
    }
    return replace(theta0, components=merged)


def merge_tensors(theta0: LazyTensors, theta1: LazyTensors, method: str, alpha: float) -> dict[str, LazyTensor]:
    """Merge tensors of the same keys and shapes in float32, each when it is read; integers are copied from theta0."""
    function = MERGE_METHODS[method].function
    if function is None:
        return dict(theta0)
    return {key: _merged(tensor, theta1[key], function, alpha) for key, tensor in theta0.items()}


def _merged(
    tensor0: LazyTensor, tensor1: LazyTensor, function: Callable[[Array, Array, float], Array], alpha: float
) -> LazyTensor:
    def load() -> Array:
        values = tensor0.read()
        if not np.issubdtype(values.dtype, np.floating):
            return values
        return function(values.astype(np.float32), tensor1.read().astype(np.float32), alpha)

    return LazyTensor(tensor0.shape, tensor0.dtype, load)


def _merge_component(originals: Sequence[Component], plan: MergePlan, policy: TextEncoderPolicy) -> Component:
    recipe = asdict(plan) | {f"theta{index}": original.recipe for index, original in enumerate(originals)}
    if len(originals) == 1 or policy == "theta0":
        tensors = originals[0].tensors
    elif policy == "theta1":
        tensors = originals[1].tensors
    else:
        tensors = merge_tensors(originals[0].tensors, originals[1].tensors, plan.method, plan.alpha)
    return replace(originals[0], tensors=tensors, recipe=recipe)


def _check_same_kind(theta0: Model, theta1: Model) -> None:
    kinds = [
        architecture({key: tensor.shape for key, tensor in model.components["unet"].tensors.items()})
        for model in (theta0, theta1)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(f"theta0 is {kinds[0]}, theta1 is {kinds[1]}: merge only checkpoints of one architecture")
    if theta0.prediction_type != theta1.prediction_type:
        raise ValueError(
            f"theta0 predicts {theta0.prediction_type}, theta1 predicts {theta1.prediction_type}: "
            "merge only checkpoints of one prediction_type"
        )
    for name in ("unet", "text_encoder"):
        _check_same_shapes(name, theta0.components[name].tensors, theta1.components[name].tensors)


def _check_same_shapes(name: str, theta0: LazyTensors, theta1: LazyTensors) -> None:
    lonely = sorted(theta0.keys() ^ theta1.keys())
    if lonely:
        raise ValueError(f"{name}: only one of theta0 and theta1 has {listed(lonely)}: merge only models of one architecture")
    for key in sorted(theta0):
        if theta0[key].shape != theta1[key].shape:
            raise ValueError(
                f"{name}: {key}: theta0 has shape {theta0[key].shape}, theta1 has {theta1[key].shape}; "
                "merge only checkpoints of one architecture"
            )
