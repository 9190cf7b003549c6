"""Finding the layers of a model that a LoRA file was trained beside."""

import math
from collections.abc import Mapping
from typing import Any

from stages.checkpoints.adapters.lora_files import PREFIXES, LoraFile, LoraModule, kohya_name
from stages.checkpoints.keys.key_maps import UNET_PREFIX, component_specs
from stages.checkpoints.messages import listed

_LDM = tuple(f"{PREFIXES['unet']}_{block}_" for block in ("input_blocks", "middle_block", "output_blocks", "time_embed", "out"))


def modules_for(
    lora: LoraFile, shapes: Mapping[str, Mapping[str, tuple[int, ...]]], unet_config: Mapping[str, Any]
) -> dict[str, dict[str, LoraModule]]:
    """The modules of a LoRA file by component and by the name that a model has for them.

    Args:
        lora: From `read_lora`.
        shapes: By component, the shapes of the model's weights by key.
        unet_config: The UNet's config.json, which says what the LDM layout calls its layers.

    Raises:
        ValueError: The model has no such layer, or one of another shape.
    """
    names = {
        kohya_name(component, key.removesuffix(".weight")): (component, key.removesuffix(".weight"))
        for component, weights in shapes.items()
        for key, shape in weights.items()
        if key.endswith(".weight") and len(shape) > 1
    }
    if any(name.startswith(_LDM) for name in lora.modules.keys() - names.keys()):
        names |= {name: names[own] for name, own in _ldm_names(unet_config).items() if own in names}
    unknown = [module.key for name, module in lora.modules.items() if name not in names]
    if unknown:
        raise ValueError(f"{lora.path}: does not belong to this model, which has no {listed(unknown)}")
    matched: dict[str, dict[str, LoraModule]] = {component: {} for component in shapes}
    for name, module in lora.modules.items():
        component, own = names[name]
        if own in matched[component]:
            raise ValueError(f"{lora.path}: holds {own} twice, as {matched[component][own].key} and as {module.key}")
        shape = shapes[component][f"{own}.weight"]
        if module.shape != (shape[0], math.prod(shape[1:])):
            raise ValueError(
                f"{lora.path}: does not fit this model: {module.key} was trained beside a weight of {module.shape[0]} rows "
                f"of {module.shape[1]}, and its {own} is {shape}"
            )
        matched[component][own] = module
    return {component: found for component, found in matched.items() if found}


def _ldm_names(unet_config: Mapping[str, Any]) -> dict[str, str]:
    """Kohya's names by those of the LDM layout's blocks, which sd-scripts writes for SDXL and some tools for SD1."""
    names = {}
    for spec in component_specs("unet", unet_config):
        if spec.name.endswith(".weight"):
            ldm_name = spec.ldm_name.removeprefix(UNET_PREFIX).removesuffix(".weight")
            names[f"{PREFIXES['unet']}_{ldm_name.replace('.', '_')}"] = kohya_name("unet", spec.name.removesuffix(".weight"))
    return names
