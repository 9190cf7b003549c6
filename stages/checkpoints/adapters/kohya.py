"""LoRA files in kohya's keys, which A1111, ComfyUI and InvokeAI read; LoHa and LoKr under LyCORIS' names.

diffusers' own exporter writes alpha = rank whatever the LoRA was trained with (its convert_state_dict_to_kohya), and
those tools know no other place for alpha than the `.alpha` tensors; here they hold the value that training used.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from stages.checkpoints.adapters.lora_factors import factors
from stages.checkpoints.adapters.lora_files import LoraFile, LoraModule
from stages.checkpoints.files.tensors import LazyTensor, LazyTensors, Recipe, sha256
from stages.checkpoints.files.writing import write_safetensors

_DIRECTIONS = {"down": "lora_down.weight", "up": "lora_up.weight"}

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def write_kohya(
    lora: LoraFile,
    out: Path,
    dtype: str,
    metadata: Mapping[str, str] = MappingProxyType({}),
    digests: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write an adapter in kohya's keys, with PEFT's settings, or else its source, as the recipe.

    Args:
        lora: The adapter.
        out: The file to write.
        dtype: Of the weights.
        metadata: More of it, beside the recipe.
        digests: As `write_safetensors` takes them.

    Raises:
        ValueError: The file holds DoRA, whose keys programs compute in different ways.
    """
    recipe: Recipe = lora.settings or {"source": lora.path.name, "sha256": sha256(lora.path)}
    write_safetensors(out, to_kohya(lora), dtype, recipe, metadata=metadata, digests=digests)


def to_kohya(lora: LoraFile) -> dict[str, LazyTensor]:
    """The tensors of a LoRA file under kohya's keys, with an `.alpha` for each layer.

    Raises:
        ValueError: The file holds DoRA, or an alpha that other programs could not read.
    """
    renamed: dict[str, LazyTensor] = {}
    for name, module in lora.modules.items():
        if module.kind == "DoRA":
            raise ValueError(f"{lora.path}: {module.key} is DoRA: only LoRA, LoHa and LoKr have keys that programs read alike")
        tensors = _scaled(module)
        renamed |= {f"{name}.{_DIRECTIONS.get(part, part)}": tensor for part, tensor in tensors.items()}
        alpha = module.scale * module.rank if factors(module.tensors).rank else 1.0
        if not _SMALLEST <= abs(alpha) <= _LARGEST:
            raise ValueError(f"{lora.path}: {module.key} has an alpha of {alpha:g}, which float32 does not hold")
        renamed[f"{name}.alpha"] = _scalar(alpha)
    return renamed


def _scaled(module: LoraModule) -> LazyTensors:
    """The layer's tensors such that other tools, which multiply the product by alpha / rank, get the trained strength.

    They scale where a factor is decomposed, by the rank of its parts; a LoKr of two whole factors they take as it is.
    """
    if factors(module.tensors).rank is not None or module.scale == 1:
        return module.tensors
    whole, scale = module.tensors["lokr_w1"], module.scale

    def load() -> np.ndarray:
        return (whole.read().astype(np.float64) * scale).astype(np.float32)

    return {**module.tensors, "lokr_w1": LazyTensor(whole.shape, "F32", load, sources=(whole,))}


def _scalar(value: float) -> LazyTensor:
    return LazyTensor((), "F32", lambda: np.array(value, dtype=np.float32), keeps_dtype=True)
