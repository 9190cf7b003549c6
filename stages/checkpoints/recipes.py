"""Saying what a file is and what it was made of, for people and for those who want to make it again."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.checkpoints.files.tensors import LazyTensors, Recipe, read_metadata, read_recipe
from stages.checkpoints.files.weight_files import open_weights
from stages.checkpoints.keys.architecture import architecture
from stages.checkpoints.messages import one_line, shown

_LAYOUTS = {  # the first whose mark is in a key
    "{} in kohya's keys": ("lora_unet_", "lora_te"),
    "{} in diffusers' keys": (".lora_", "_lora.", ".lora.", ".hada_", ".lokr_"),
    "a whole checkpoint in the LDM layout": ("model.diffusion_model.",),
    "a text encoder": ("text_model.", "embeddings.token_embedding"),
    "a UNet in the diffusers layout": ("down_blocks.0.resnets.0.time_emb_proj",),
    "a VAE in the diffusers layout": ("encoder.down_blocks.", "decoder.up_blocks."),
    "a VAE in the LDM layout": ("first_stage_model.", "encoder.down.0."),
}
_ADAPTERS = {"DoRA": ("dora_scale", "lora_magnitude_vector"), "LoHa": (".hada_",), "LoKr": (".lokr_",)}
_SHOWN_METADATA = 100
"""Characters of another tool's metadata that are shown."""


def recipes_of(path: Path) -> dict[str, Recipe]:
    """The recipes of a file's parts, or of the parts of a diffusers directory; empty where this room did not write it."""
    if path.is_dir():
        files = sorted(path.glob("*/*.safetensors")) or sorted(path.glob("*.safetensors"))
        return {file.parent.name if file.parent != path else file.stem: read_recipe(file) for file in files}
    recipe = read_recipe(path)
    is_whole = recipe and all(isinstance(value, dict) for value in recipe.values())
    return dict(recipe) if is_whole else {"weights": recipe} if recipe else {}


def describe(path: Path) -> str:
    """What a file or a diffusers directory is, and the recipe of every part.

    Raises:
        ValueError: The file is damaged, or no checkpoint.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or directory")
    lines = [f"{path.name}: {_kind(open_weights(path).tensors)}"] if path.is_file() else [f"{path.name}: a directory"]
    recipes = recipes_of(path)
    for part, recipe in recipes.items():
        lines += [f"{one_line(part)}:", *(f"  {one_line(line)}" for line in _recipe_lines(recipe))]
    if not any(recipes.values()):
        lines += ["no recipe of this pipeline", *_foreign_metadata(path)]
    return "\n".join(lines)


def _kind(tensors: LazyTensors) -> str:
    layout = next(
        (name for name, marks in _LAYOUTS.items() if any(mark in key for key in tensors for mark in marks)), "weights"
    )
    found = architecture({key: tensor.shape for key, tensor in tensors.items()})
    generation = f", {found}" if found.context_width and "{}" not in layout else ""
    dtypes = Counter(tensor.dtype for tensor in tensors.values())
    counts = ", ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
    return f"{layout.format(_adapters(tensors))}{generation}; tensors: {counts}"


def _adapters(tensors: LazyTensors) -> str:
    """Which kinds of adapters the keys belong to: LoRA, if they show no other."""
    kinds = [name for name, marks in _ADAPTERS.items() if any(mark in key for key in tensors for mark in marks)]
    return f"a {' and '.join(kinds or ['LoRA'])}"


def _recipe_lines(recipe: Recipe) -> Iterator[str]:
    if {"source", "sha256"} <= recipe.keys():
        yield _source(recipe)
        return
    if "method" in recipe:
        yield f"{recipe['method']}: {recipe.get('formula', '')}"
        yield f"{recipe.get('direction', '')} ({recipe.get('method_source', '')})"
    for name, value in recipe.items():
        if name in ("method", "formula", "direction", "method_source"):
            continue
        if isinstance(value, Mapping) and {"source", "sha256"} <= value.keys():
            value = _source(value)
        elif isinstance(value, dict | list):
            value = json.dumps(value, sort_keys=True)
        elif value is None:
            continue
        yield f"{name}: {value}"


def _source(source: Mapping[str, Any]) -> str:
    more = "".join(f", {name}: {value}" for name, value in source.items() if name not in ("source", "sha256") and value)
    return f"{source['source']}, sha256 {source['sha256']}{more}"


def _foreign_metadata(path: Path) -> Iterator[str]:
    if path.suffix != ".safetensors" or path.is_dir():
        return
    for name, value in sorted(read_metadata(path).items()):
        text = one_line(value[: 2 * _SHOWN_METADATA])
        yield f"  {shown(name)}: {text[:_SHOWN_METADATA]}{'…' if len(value) > _SHOWN_METADATA else ''}"
