"""Merging models: which tensors are merged with one another, and with which weight.

Directions differ between tools; here theta0 and theta1 are as in `theta = (1 - alpha) * theta0 + alpha * theta1`.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from stages.checkpoints.components import Component
from stages.checkpoints.files.chunks import computed
from stages.checkpoints.files.tensors import FLOATS, LazyTensor, LazyTensors
from stages.checkpoints.keys.architecture import architecture
from stages.checkpoints.keys.blocks import block_alphas
from stages.checkpoints.keys.key_maps import component_specs
from stages.checkpoints.merging.config import WEIGHTED_SUM, MergeConfig
from stages.checkpoints.merging.merge_recipes import merge_recipe
from stages.checkpoints.merging.methods import MERGE_METHODS, Array, Measured, TensorSettings
from stages.checkpoints.messages import listed
from stages.checkpoints.model import Model

MERGED_COMPONENTS = ("unet", "text_encoder")

THETAS = ("theta0", "theta1", "theta2")
_COUNTS = {1: "takes theta0 as it is", 2: "merges two models", 3: "merges three models"}


def merge_models(theta0: Model, theta1: Model | None, config: MergeConfig, alpha: float, theta2: Model | None = None) -> Model:
    """The merged UNet and text encoder, computed as they are written. The VAE is not among them.

    Args:
        theta0: The first model, whose configs and scheduler the merge gets.
        theta1: The second; None for passthrough.
        config: How to merge. Its dtype is for whoever writes the merge.
        alpha: The weight of theta1, in [0, 1], where the config says no other.
        theta2: The model that some methods measure differences from.

    Raises:
        ValueError: The models are of different architectures or predict different things, there is one too few or many for
            the method, one lacks what is taken of it, a block with a weight is not there, or the schedule cannot be rescaled.
    """
    models = _checked([theta0, theta1, theta2], config)
    merged = {
        name: merge_component(name, [model.components.get(name) for model in models], config, alpha)
        for name in MERGED_COMPONENTS
    }
    words = models[taken_models("text_encoder", config)[0]]
    prediction = theta0.prediction
    if config.rescale_betas_zero_snr:
        if prediction.type != "v_prediction":
            raise ValueError(
                f"rescale_betas_zero_snr: given True: the models predict {prediction.type}, which says nothing where there is "
                "noise alone: take models that predict v, or set it to false"
            )
        prediction = prediction._replace(rescale_betas_zero_snr=True)
    tokenizer = words.tokenizer or words.directory
    return replace(theta0, components=merged, absent={}, tokenizer=tokenizer, prediction=prediction)


def taken_models(component: str, config: MergeConfig) -> Sequence[int]:
    """Which of the models a component is made of: 0 for theta0, 1 for theta1, 2 for theta2."""
    count = MERGE_METHODS[config.method].models
    if count == 1 or component != "text_encoder" or config.text_encoder == "merged":
        return range(count)
    return (THETAS.index(config.text_encoder),)


def merge_vaes(theta0: Component, theta1: Component, alpha: float) -> Component:
    """The weighted sum of two VAEs, alpha being the weight of theta1's.

    Raises:
        ValueError: They are of different architectures.
    """
    _check_same_shapes("vae", theta0.tensors, theta1.tensors, "theta1")
    return merge_component("vae", [theta0, theta1], WEIGHTED_SUM, alpha)


def merge_component(name: str, given: Sequence[Component | None], config: MergeConfig, alpha: float) -> Component:
    """One component of a merge, with its recipe.

    Args:
        name: unet, text_encoder or vae.
        given: That component of theta0, theta1 and theta2, as many as there are; None of a model that lacks it. Those of
            `taken_models` must be there and of one shape.
        config: How to merge.
        alpha: The weight of theta1, in [0, 1], where the config says no other.
    """
    sources = {theta: original.recipe for theta, original in zip(THETAS, given, strict=False) if original}
    recipe = merge_recipe(config, alpha) | sources
    originals = [original for original in (given[index] for index in taken_models(name, config)) if original]
    if len(originals) == 1:
        return replace(originals[0], recipe=recipe)
    alphas = _alphas(name, originals[0], config, alpha)
    tensors = {
        key: _merged([original.tensors[key] for original in originals], config, f"{name}.{key}", alphas[key])
        for key in originals[0].tensors
    }
    return replace(originals[0], tensors=tensors, recipe=recipe)


def _merged(originals: Sequence[LazyTensor], config: MergeConfig, key: str, alpha: float) -> LazyTensor:
    if originals[0].dtype not in FLOATS:
        return originals[0]
    method = MERGE_METHODS[config.method]
    settings = TensorSettings(key=key, alpha=alpha, density=config.density, seed=config.seed)

    def merge(start: int, measured: Measured, *thetas: Array) -> Array:
        return method.function(*thetas, replace(settings, start=start, measured=measured, overwrite=True))

    return computed(originals, merge, method.measure and partial(method.measure, settings))


def _alphas(name: str, original: Component, config: MergeConfig, alpha: float) -> dict[str, float]:
    """The weight of theta1 in every tensor of a component."""
    own = {"unet": config.component_alpha.unet, "text_encoder": config.component_alpha.text_encoder}.get(name)
    alphas = dict.fromkeys(original.tensors, alpha if own is None else own)
    if name == "unet" and config.blocks is not None:
        alphas |= block_alphas(config.blocks, component_specs(name, original.config))
    return alphas


def _checked(given: Sequence[Model | None], config: MergeConfig) -> list[Model]:
    """The models that the method is made of, all of one kind, each with what is taken of it."""
    method = config.method
    needed = MERGE_METHODS[method].models
    for name, model in zip(THETAS[:needed], given, strict=False):
        if model is None:
            raise ValueError(f"method {method} {_COUNTS[needed]}, and there is no {name}: name one, or choose another method")
    for name, model in zip(THETAS[needed:], given[needed:], strict=True):
        if model is not None:
            raise ValueError(
                f"method {method} {_COUNTS[needed]}, and there is a {name}: set it to null, or choose another method"
            )
    models = [model for model in given if model is not None]
    _check_holds(models, config)
    for name, model in zip(THETAS[1:needed], models[1:], strict=True):
        _check_same_kind(models[0], model, name, [part for part in MERGED_COMPONENTS if len(taken_models(part, config)) > 1])
    return models


def _check_holds(models: Sequence[Model], config: MergeConfig) -> None:
    for component in MERGED_COMPONENTS:
        for index in taken_models(component, config):
            if component not in models[index].components:
                raise ValueError(
                    f"{THETAS[index]} ({models[index].directory}) holds no {component}, or none that is finite: take that of "
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
