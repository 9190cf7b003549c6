"""Making the weights of a merge again from what their recipe names: the same bytes, or an error that says what is missing.

The recipe names the method with its settings, and the file of each original by its sha256. Two things that `base` may have done
to an original are not in it: rounding it to float16 (base.dtype), and taking the averaged weights of its UNet (ema). So every
way of reading the originals is tried until the bytes are those of the file; there is one way in most cases.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.checkpoints.components import Component, named, read_config
from stages.checkpoints.files.digests import find_by_digest
from stages.checkpoints.files.tensors import FLOATS, Recipe, open_safetensors, read_recipe, sha256
from stages.checkpoints.files.weight_files import open_weights
from stages.checkpoints.files.writing import write_safetensors
from stages.checkpoints.keys.spellings import component_of, has_ema
from stages.checkpoints.merging.config import MergeConfig
from stages.checkpoints.merging.merge_recipes import is_merge_recipe, read_merge_recipe
from stages.checkpoints.merging.models import THETAS, merge_component, taken_models
from stages.checkpoints.single_file_parts import read_component_of

_DTYPES = {"F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class Merged:
    """The weights of one component of a merge, as they lie in a file.

    Attributes:
        file: The file.
        component: unet, text_encoder or vae.
        description: The component's config.json, which lies beside the file.
        recipe: What the file says that it was made of.
        config: The same, as the merge takes it; its dtype is that of the file.
        alpha: The weight of theta1.
    """

    file: Path
    component: str
    description: Mapping[str, Any]
    recipe: Recipe
    config: MergeConfig
    alpha: float


def remake(file: Path, out: Path, places: Sequence[Path]) -> dict[str, Path]:
    """Make the weights of a merge again.

    Args:
        file: Weights of one component that a merge wrote, with the component's config.json beside them.
        out: The file to write.
        places: Files of the originals' weights, and directories that are searched for them.

    Returns:
        Which file each original was read from, by theta0, theta1 and theta2.

    Raises:
        ValueError: The file has no recipe of a merge, an original is not in `places`, or what they give are other bytes;
            nothing is written then.
    """
    if out.exists():
        raise ValueError(f"{out} exists: name a file that is not there yet")
    merged = _read_merged(file)
    sources = _find_sources(merged, places)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        for originals in _originals(merged, sources, Path(folder)):
            again = Path(folder) / out.name
            _merge(merged, originals, again)
            if sha256(again) == sha256(file):
                again.replace(out)
                return sources
    raise ValueError(
        f"{file}: its originals are there, and what they give are other bytes: it was merged with numpy "
        f"{merged.recipe.get('numpy')}, and this is {np.__version__}; or what follows its header was changed"
    )


def _read_merged(file: Path) -> Merged:
    tensors, recipe = open_weights(file).tensors, read_recipe(file)
    if not is_merge_recipe(recipe):
        raise ValueError(
            f"{file}: holds no recipe of a merge: give the weights of one component that `merge` wrote, such as "
            "unet/diffusion_pytorch_model.safetensors"
        )
    dtypes = sorted({tensor.dtype for tensor in tensors.values() if tensor.dtype in FLOATS})
    if len(dtypes) != 1 or dtypes[0] not in _DTYPES:
        raise ValueError(f"{file}: its weights are {' and '.join(dtypes)}: a merge writes all in float16, or all in float32")
    component = component_of(tensors)
    description = read_config(file.parent / "config.json", component)
    with named(file):
        config, alpha = read_merge_recipe(recipe, _DTYPES[dtypes[0]])
    return Merged(file, component, description, recipe, config, alpha)


def _find_sources(merged: Merged, places: Sequence[Path]) -> dict[str, Path]:
    """The file of every original that the component is made of."""
    thetas = [THETAS[index] for index in taken_models(merged.component, merged.config)]
    said = {theta: merged.recipe.get(theta) for theta in thetas}
    wanted = {theta: source for theta, source in said.items() if isinstance(source, dict) and "sha256" in source}
    if unknown := [theta for theta in thetas if theta not in wanted]:
        raise ValueError(f"{merged.file}: its recipe names no file and no sha256 of {' and '.join(unknown)}")
    found = find_by_digest({str(source["sha256"]): str(source.get("source")) for source in wanted.values()}, places)
    missing = [
        f"{theta}, {source.get('source')} with the sha256 {source['sha256']}"
        for theta, source in wanted.items()
        if source["sha256"] not in found
    ]
    if missing:
        raise ValueError(
            f"{merged.file}: not found among --sources: {'; '.join(missing)}: name that file, or a directory that holds it"
        )
    return {theta: found[source["sha256"]] for theta, source in wanted.items()}


def _originals(merged: Merged, sources: Mapping[str, Path], folder: Path) -> Iterator[dict[str, Component]]:
    """The component of every original, in each of the ways in which `base` may have read it."""
    opened = {theta: open_weights(path) for theta, path in sources.items()}
    choices = [
        (False, True) if merged.component == "unet" and has_ema(weights.tensors) else (False,) for weights in opened.values()
    ]
    for averaged in product(*choices):
        originals = {}
        for ema, (theta, weights) in zip(averaged, opened.items(), strict=True):
            with named(weights.file):
                originals[theta] = read_component_of(weights, merged.component, merged.description, ema=ema)
        yield originals
        if any(tensor.dtype != "F16" for original in originals.values() for tensor in original.tensors.values()):
            yield {theta: _rounded(original, folder / f"{theta}.safetensors") for theta, original in originals.items()}


def _rounded(original: Component, file: Path) -> Component:
    """An original as `base` writes it with the dtype float16."""
    write_safetensors(file, original.tensors, "float16", {})
    return replace(original, tensors=open_safetensors(file))


def _merge(merged: Merged, originals: Mapping[str, Component], out: Path) -> None:
    given = [originals.get(theta) for theta in THETAS]
    component = merge_component(merged.component, given, merged.config, merged.alpha)
    write_safetensors(out, component.tensors, merged.config.dtype, merged.recipe)
