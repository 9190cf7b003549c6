"""A LoRA put into a model's weights: what is then loaded needs no LoRA."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.checkpoints.kohya import kohya_name, read_kohya
from stages.checkpoints.model import Model
from stages.checkpoints.tensors import Array, LazyTensor, listed, sha256

_FUSED = ("unet", "text_encoder")
_PARTS = ("lora_down.weight", "lora_up.weight", "alpha")


def fuse(model: Model, lora: Path, weight: float) -> Model:
    """Add a LoRA, times `weight`, to the weights that it was trained beside: W + weight * alpha / rank * up @ down.

    Args:
        model: Whose UNet and text encoder the LoRA belongs to.
        lora: Its file, in diffusers' keys with the alpha in the metadata, or in kohya's.
        weight: 1 for the LoRA as it was trained; 0 leaves the model as it is.

    Raises:
        ValueError: The weight is not finite, the file holds something other than plain LoRA, or the model lacks what it was
            trained beside.
    """
    if not math.isfinite(weight):
        raise ValueError(f"--weight: given {weight}: a finite number, 1 for the LoRA as it was trained")
    tensors = read_kohya(lora)
    fused: set[str] = set()
    recipe = {"lora": {"source": lora.name, "sha256": sha256(lora), "weight": weight}}
    components = dict(model.components)
    for name in _FUSED:
        changed = dict(components[name].tensors)
        for key, tensor in changed.items():
            parts = [f"{kohya_name(name, key.removesuffix('.weight'))}.{part}" for part in _PARTS]
            if key.endswith(".weight") and all(part in tensors for part in parts):
                changed[key] = _with_lora(key, tensor, [tensors[part] for part in parts], weight)
                fused.update(parts)
        components[name] = replace(components[name], tensors=changed, recipe={**components[name].recipe, **recipe})
    if tensors.keys() - fused:
        raise ValueError(
            f"{lora}: does not belong to this model, or is not plain LoRA: {listed(sorted(tensors.keys() - fused))}"
        )
    return replace(model, components=components)


def _with_lora(key: str, tensor: LazyTensor, parts: list[LazyTensor], weight: float) -> LazyTensor:
    down, up, alpha = parts
    rank = down.shape[0]
    if up.size // rank * (down.size // rank) != tensor.size or up.shape[1:2] != (rank,):
        raise ValueError(f"{key} {tensor.shape} is not what a LoRA of shapes {up.shape} and {down.shape} was trained beside")

    def load() -> Array:
        scale = weight * float(alpha.read()) / rank
        # In float64, whose rounding to float32 hides in which order the matrix product was summed.
        change = up.read().reshape(-1, rank).astype(np.float64) @ down.read().reshape(rank, -1).astype(np.float64)
        return (tensor.read().reshape(-1) + scale * change.reshape(-1)).astype(np.float32)

    return LazyTensor(tensor.shape, tensor.dtype, load)
