"""How strong each layer of a LoRA file is: what its `.alpha` tensor says, or else PEFT's settings in the metadata."""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from stages.checkpoints.adapters.lora_factors import Product
from stages.checkpoints.adapters.lora_patterns import check_patterns, first_pattern
from stages.checkpoints.file_names import LORA_METADATA_KEY
from stages.checkpoints.files.tensors import LazyTensor

_CHANGE_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of PEFT's `init_lora_weights` with which the model's own weights are changed before training begins."""


def read_settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's settings by component, such as `unet.lora_alpha`; empty where the metadata have none.

    Raises:
        ValueError: They are not JSON, or no object.
    """
    try:
        settings = json.loads(metadata.get(LORA_METADATA_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its metadata {LORA_METADATA_KEY} is not JSON ({error}), so its alpha is unknown") from error
    if not isinstance(settings, dict):
        raise ValueError(f"its metadata {LORA_METADATA_KEY} holds no JSON object, so its alpha is unknown")
    return settings


def check_settings(settings: Mapping[str, Any], component: str, layers: Collection[str]) -> None:
    """Refuse settings that say that training changed more than the file's tensors, or that are not understood.

    Args:
        settings: From `read_settings`.
        component: Whose settings.
        layers: The names of the component's layers in the file; where there are none its settings count for nothing.

    Raises:
        ValueError: The message names the setting.
    """
    if not layers:
        return
    setting = f"{component}.init_lora_weights"
    first = settings.get(setting)
    if isinstance(first, str) and first.lower().startswith(_CHANGE_THE_MODEL):
        raise ValueError(
            f"the metadata's {setting} is {first!r}: training changed the model's own weights too, which the file does not "
            "hold; convert it to an ordinary LoRA of twice the rank: PEFT's save_pretrained, "
            "path_initial_model_for_weight_conversion"
        )
    for setting in (f"{component}.rank_pattern", f"{component}.alpha_pattern"):
        patterns = settings.get(setting) or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"the metadata's {setting} cannot be read: no JSON object")
        try:
            check_patterns(patterns, max(map(len, layers)))
        except ValueError as error:
            raise ValueError(f"the metadata's {setting} cannot be read: {error}") from error


def stored_strength(key: str, alpha: LazyTensor, product: Product) -> dict[str, Any]:
    """The alpha of kohya's keys, and the rank. Without a decomposed factor there is no rank and alpha is ignored (LyCORIS)."""
    if product.rank is None:
        return {"alpha": 1.0, "rank": 1}
    values = alpha.read().reshape(-1) if alpha.size == 1 else [math.nan]
    return {"alpha": _checked_alpha(f"{key}.alpha", float(values[0])), "rank": product.rank}


def trained_strength(settings: Mapping[str, Any], component: str, layer: str, name: str, product: Product) -> dict[str, Any]:
    """Alpha and rank of PEFT's settings, for a layer of a component.

    Args:
        settings: Such as `check_settings` lets through.
        component: "unet" or "text_encoder".
        layer: Its name in the file, without the component.
        name: What the settings call alpha: "lora_alpha" of LoRA and DoRA, "alpha" of LoHa and LoKr.
        product: Of its factors.
    """
    alpha = _checked_alpha(f"the metadata's {component}.{name}", _of_layer(settings, component, layer, "alpha_pattern", name))
    rank = product.rank or _of_layer(settings, component, layer, "rank_pattern", "r")
    if not (math.isfinite(rank) and rank >= 1):
        raise ValueError(f"the metadata's {component}.r or rank_pattern: {rank:g} for {layer}, which is no rank")
    root = bool(settings.get(f"{component}.use_rslora")) and name == "lora_alpha"
    return {"alpha": alpha, "rank": round(rank), "use_rslora": root}


def _checked_alpha(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name}: not one finite number")
    if value == 0:
        raise ValueError(f"{name}: 0, which some programs take as nothing added and others as the rank")
    return value


def _of_layer(settings: Mapping[str, Any], component: str, layer: str, patterns: str, name: str) -> float:
    """A setting of one layer as PEFT finds it: that of a pattern, or else the common one."""
    if f"{component}.{name}" not in settings:
        raise ValueError(f"the metadata has no {component}.{name}, so the strength of {component}.{layer} is unknown")
    values = settings.get(f"{component}.{patterns}") or {}
    pattern = first_pattern(values, layer)
    try:
        return float(settings[f"{component}.{name}"] if pattern is None else values[pattern])
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"the metadata's {component}.{patterns} or {name} cannot be read: {error}") from error
