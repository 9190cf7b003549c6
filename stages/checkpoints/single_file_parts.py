"""Taking a single file apart into components: whole checkpoints in the LDM layout, or one part of a model alone."""

from collections.abc import Mapping
from typing import Any

from stages.checkpoints.components import COMPONENTS, Component, check_architecture, diffusers_component
from stages.checkpoints.files.tensors import LazyTensors
from stages.checkpoints.files.weight_files import Weights
from stages.checkpoints.keys.checking import conform
from stages.checkpoints.keys.key_maps import TensorSpec, component_specs, from_ldm
from stages.checkpoints.keys.open_clip import has_open_clip
from stages.checkpoints.keys.spellings import component_of, is_diffusers, normalise_ldm, with_ema, without_nesting
from stages.checkpoints.messages import shown

Configs = Mapping[str, Mapping[str, Any]]


def read_parts(weights: Weights, configs: Configs, *, ema: bool) -> dict[str, Component]:
    """The components that a single file holds.

    Args:
        weights: The file's.
        configs: config.json of every component.
        ema: Whether the UNet is the average that the file holds beside it.

    Raises:
        ValueError: Keys are missing, unexpected or wrong, or the file holds another kind of model.
    """
    specs = {name: component_specs(name, configs[name]) for name in COMPONENTS}
    tensors = without_nesting(weights.tensors)
    if is_diffusers(tensors):
        if ema:
            raise ValueError("holds no EMA weights: set ema to false")
        component = component_of(tensors)
        return {component: diffusers_component(component, configs[component], weights._replace(tensors=dict(tensors)))}
    check_architecture(tensors, specs["unet"], "the config directory")
    if has_open_clip(tensors):
        _check_open_clip(configs["text_encoder"])
    if ema:
        tensors = with_ema(tensors, [spec.ldm_name for spec in specs["unet"]])
    tensors = normalise_ldm(tensors, configs["text_encoder"].get("num_hidden_layers", 12))
    present = [name for name in COMPONENTS if _holds(tensors, specs[name])]
    if not present:
        raise ValueError(f"holds no {' and no '.join(COMPONENTS)}: no checkpoint of Stable Diffusion, or in an unknown layout")
    tensors = conform(tensors, [spec for name in present for spec in specs[name]], "ldm")
    return {
        name: Component(configs[name], from_ldm(tensors, specs[name]), weights.file, {}, weights.shards) for name in present
    }


def read_component_of(weights: Weights, component: str, config: Mapping[str, Any], *, ema: bool) -> Component:
    """One component of a single file, or of a file in the diffusers layout; what else the file holds is not looked at.

    Args:
        weights: The file's.
        component: unet, vae or text_encoder.
        config: config.json of that component.
        ema: Whether a UNet is the average that the file holds beside it.

    Raises:
        ValueError: The file lacks tensors of the component, or has them in other shapes.
    """
    specs = component_specs(component, config)
    tensors = without_nesting(weights.tensors)
    if ema:
        tensors = with_ema(tensors, [spec.ldm_name for spec in specs])
    tensors = normalise_ldm(tensors, config.get("num_hidden_layers", 12))
    own = {spec.ldm_name: tensors[spec.ldm_name] for spec in specs if spec.ldm_name in tensors}
    if not own:
        return diffusers_component(component, config, weights)
    return Component(config, from_ldm(conform(own, specs, "ldm"), specs), weights.file, {}, weights.shards)


def _holds(tensors: LazyTensors, specs: list[TensorSpec]) -> bool:
    return any(spec.ldm_name in tensors for spec in specs)


def _check_open_clip(config: Mapping[str, Any]) -> None:
    """Refuse a config with CLIP's activation for OpenCLIP's weights: no shape shows it, and images would be slightly wrong."""
    activation = config.get("hidden_act", "quick_gelu")
    if activation != "gelu":
        raise ValueError(
            f"the text encoder is OpenCLIP's (SD2), and text_encoder/config.json says hidden_act {shown(activation)}, "
            "not gelu: name the configs that belong to it"
        )
