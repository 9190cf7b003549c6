"""Fusing a LoRA into a model's weights, so that programs can load the result without knowing of LoRA."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.checkpoints.adapters.lora_factors import factors
from stages.checkpoints.adapters.lora_files import LoraModule, read_lora
from stages.checkpoints.adapters.lora_matching import modules_for
from stages.checkpoints.file_names import holds_whole_unet, lora_file
from stages.checkpoints.files.tensors import Array, LazyTensor, sha256
from stages.checkpoints.model import Model

_FUSED = ("unet", "text_encoder")


def fuse(model: Model, lora: Path, weight: float) -> Model:
    """Add an adapter, times `weight`, to the weights that it was trained beside: W + weight * alpha / rank * product.

    DoRA then gives each row the length that it learnt (Liu et al. 2024, equation 5, arXiv:2402.09353).

    Args:
        model: Whose UNet and text encoder the LoRA belongs to.
        lora: Its file, under any names that `read_lora` knows, or the directory that a training wrote.
        weight: 1 for the LoRA as it was trained; 0 leaves the model as it is.

    Raises:
        OSError: There is no such file.
        ValueError: The weight is not finite, the file is a whole UNet or not understood whole, or the model lacks what it was
            trained beside.
    """
    if not math.isfinite(weight):
        raise ValueError(f"--weight: given {weight}: a finite number, 1 for the LoRA as it was trained")
    lora = lora_file(lora)
    if holds_whole_unet(lora):
        raise ValueError(f"--lora: {lora} is the whole UNet of a full fine-tuning, and no LoRA: export its directory by itself")
    file = read_lora(lora)
    shapes = {name: {key: each.shape for key, each in model.components[name].tensors.items()} for name in _FUSED}
    matched = modules_for(file, shapes, model.components["unet"].config)
    recipe = {"lora": {"source": lora.name, "sha256": sha256(lora), "weight": weight}}
    components = dict(model.components)
    for name in _FUSED:
        changed = dict(components[name].tensors)
        for own, module in matched.get(name, {}).items():
            changed[f"{own}.weight"] = _with_lora(changed[f"{own}.weight"], module, weight)
        components[name] = replace(components[name], tensors=changed, recipe={**components[name].recipe, **recipe})
    return replace(model, components=components)


def _with_lora(tensor: LazyTensor, module: LoraModule, weight: float) -> LazyTensor:
    def load() -> Array:
        change = factors(module.tensors).read()
        values = tensor.read().reshape(-1) + weight * module.scale * change.reshape(-1)
        if module.kind == "DoRA":
            rows = values.reshape(change.shape)
            lengths = module.tensors["magnitude"].read().reshape(-1, 1).astype(np.float64)
            values = lengths / np.linalg.norm(rows, axis=1, keepdims=True) * rows
        return values.astype(np.float32)

    sources = (tensor, *module.tensors.values())
    return LazyTensor(tensor.shape, tensor.dtype, load, sources=sources) if weight else tensor
