"""Tensors that are read when they are needed, and the safetensors files they come from and go to."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

Array = np.ndarray
Recipe = Mapping[str, Any]

RECIPE_KEY = "recipe"
FLOATS = ("BF16", "F16", "F32", "F64")
DTYPES = {"float16": np.float16, "float32": np.float32}
LISTED_KEYS = 8


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is known by shape and dtype, and read when asked for.

    Attributes:
        shape: Its shape.
        dtype: As safetensors names it: "F16", "I64".
        load: Reads or computes the values. bfloat16 arrives as float32, which holds it exactly.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array]

    def read(self) -> Array:
        """The values, in `shape`."""
        return self.load().reshape(self.shape)

    def reshape(self, shape: tuple[int, ...]) -> "LazyTensor":
        """The same values in another shape, still unread."""
        return replace(self, shape=shape)


LazyTensors = Mapping[str, LazyTensor]


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Open a safetensors file; its tensors are memory-mapped.

    Raises:
        ValueError: The file is truncated or not a safetensors file.
    """
    try:
        file = safe_open(path, framework="np")
        return {key: _lazy(file, path, key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated, or not a safetensors file: {error}") from error


def write_safetensors(path: Path, tensors: LazyTensors, dtype: str, recipe: Recipe) -> None:
    """Write tensors, rounded once to `dtype` (integers stay as they are), with the recipe in the metadata.

    The same tensors and recipe give the same bytes: safetensors sorts the keys, and there is one metadata key.

    Raises:
        ValueError: A tensor is not finite, in itself or in `dtype`; all such keys are named.
    """
    arrays = {key: _rounded(tensor.read(), dtype) for key, tensor in tensors.items()}
    broken = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ValueError(f"not a finite number (NaN or Inf) in {dtype}: {listed(broken)}")
    save_file(arrays, path, metadata={RECIPE_KEY: json.dumps(recipe, sort_keys=True)})
    path.chmod(0o644)  # safetensors gives its files to their owner alone


def read_recipe(path: Path) -> Recipe:
    """The recipe in the metadata of a file that this room wrote; empty for any other file."""
    if path.suffix != ".safetensors":
        return {}
    try:
        recipe = json.loads(read_metadata(path).get(RECIPE_KEY, "{}"))
    except json.JSONDecodeError:
        return {}
    return recipe if isinstance(recipe, dict) else {}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, empty where it has none."""
    try:
        return safe_open(path, framework="np").metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated, or not a safetensors file: {error}") from error


@cache
def sha256(path: Path) -> str:
    """Hex digest of a file; computed once a process."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(keys: list[str]) -> str:
    """Keys for an error message: the first few, and how many more."""
    more = f" and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return ", ".join(keys[:LISTED_KEYS]) + more


def _lazy(file: Any, path: Path, key: str) -> LazyTensor:
    header = file.get_slice(key)
    dtype = header.get_dtype()
    load = (lambda: _read_bfloat16(path, key)) if dtype == "BF16" else (lambda: file.get_tensor(key))
    return LazyTensor(tuple(header.get_shape()), dtype, load)


def _read_bfloat16(path: Path, key: str) -> Array:
    """Read what numpy has no dtype for; only such files cost an import of torch."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(key).float().numpy()


def _rounded(array: Array, dtype: str) -> Array:
    if not np.issubdtype(array.dtype, np.floating):
        return array
    with np.errstate(over="ignore"):  # an overflow becomes Inf, which is refused by name
        return np.asarray(array, dtype=DTYPES[dtype], order="C")
