"""LoRA files in kohya's keys, which A1111 and ComfyUI read.

diffusers' own exporter writes alpha = rank whatever the LoRA was trained with (its convert_state_dict_to_kohya), and
those tools know no other place for alpha than the `.alpha` tensors; here they hold the value that training used.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.checkpoints.tensors import LazyTensor, LazyTensors, open_safetensors, read_metadata
from stages.checkpoints.writing import write_safetensors

ADAPTER_METADATA_KEY = "lora_adapter_metadata"
_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
_DIRECTIONS = {"lora_A": "lora_down", "lora_B": "lora_up"}
_KEY = re.compile(r"(unet|text_encoder)\.(.+)\.(lora_A|lora_B)\.weight")


def is_plain_lora(lora: Path) -> bool:
    """Whether a LoRA file of diffusers holds nothing that kohya's keys have no common name for (DoRA, LoKr, LoHa)."""
    return all(_KEY.fullmatch(key) for key in open_safetensors(lora))


def write_kohya(lora: Path, out: Path, dtype: str) -> None:
    """Write a LoRA file of diffusers as one in kohya's keys, with the adapter's settings as its recipe.

    Raises:
        ValueError: The file does not say its alpha, or holds something other than plain LoRA (DoRA, LoKr, biases).
    """
    write_safetensors(out, read_kohya(lora), dtype, _settings(lora))


def read_kohya(lora: Path) -> LazyTensors:
    """Open a LoRA file, of diffusers or in kohya's keys, under kohya's keys.

    Raises:
        ValueError: The file does not say its alpha, or holds something other than plain LoRA (DoRA, LoKr, biases).
    """
    tensors = open_safetensors(lora)
    if all(key.startswith(tuple(_PREFIXES.values())) for key in tensors):
        # Trainers that know SDXL number its two text encoders; the only one of SD1 is then the first.
        return {re.sub("^lora_te1_", f"{_PREFIXES['text_encoder']}_", key): tensor for key, tensor in tensors.items()}
    settings = _settings(lora)
    try:
        return to_kohya(tensors, settings)
    except ValueError as error:
        raise ValueError(f"{lora}: {error}") from error


def _settings(lora: Path) -> dict[str, Any]:
    metadata = read_metadata(lora)
    if ADAPTER_METADATA_KEY not in metadata:
        raise ValueError(f"{lora}: no {ADAPTER_METADATA_KEY} in its metadata, so its alpha is unknown; train it anew")
    return json.loads(metadata[ADAPTER_METADATA_KEY])


def to_kohya(tensors: LazyTensors, settings: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Rename a LoRA's tensors and add `.alpha`.

    Args:
        tensors: With keys such as `unet.….to_q.lora_A.weight`.
        settings: PEFT's settings by component: `unet.lora_alpha`, `unet.alpha_pattern`, `unet.use_rslora`.
    """
    renamed: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{key}: only plain LoRA has kohya keys that every tool reads")
        component, module, direction = match.groups()
        name = kohya_name(component, module)
        renamed[f"{name}.{_DIRECTIONS[direction]}.weight"] = tensor
        if direction == "lora_A":
            renamed[f"{name}.alpha"] = _scalar(_kohya_alpha(component, module, tensor.shape[0], settings))
    return renamed


def kohya_name(component: str, module: str) -> str:
    """What kohya's keys call a module of the UNet or the text encoder."""
    if component == "text_encoder" and not module.startswith("text_model."):
        module = f"text_model.{module}"  # transformers 5.6 dropped this level; kohya's keys have it
    return f"{_PREFIXES[component]}_{module.replace('.', '_')}"


def _kohya_alpha(component: str, module: str, rank: int, settings: Mapping[str, Any]) -> float:
    """Alpha such that kohya's scale, alpha / rank, is PEFT's."""
    if f"{component}.lora_alpha" not in settings:
        raise ValueError(f"the metadata has no {component}.lora_alpha, so the alpha is unknown")
    pattern = settings.get(f"{component}.alpha_pattern") or {}
    # As PEFT matches them: a pattern stands for the end of a module's name.
    matching = (value for name, value in pattern.items() if re.match(rf"(.*\.)?({name})$", module))
    alpha = float(next(matching, settings[f"{component}.lora_alpha"]))
    return alpha * math.sqrt(rank) if settings.get(f"{component}.use_rslora") else alpha


def _scalar(value: float) -> LazyTensor:
    return LazyTensor((), "F32", lambda: np.array(value, dtype=np.float32))
