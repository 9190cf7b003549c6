"""Reading .ckpt files: pickles made by torch.save, of which nothing is ever executed."""

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.checkpoints.tensors import LazyTensor

# Trainers pickle callbacks and scalars beside the weights. Their classes are never imported: a stub takes their place.
HARMLESS = frozenset({"pytorch_lightning", "lightning", "lightning_fabric", "omegaconf"})
_DTYPES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
}


class _Leftover:
    """Takes the place of a trainer's object and ignores whatever it is given."""

    def __new__(cls, *args: object, **kwargs: object) -> "_Leftover":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def open_ckpt(path: Path) -> dict[str, LazyTensor]:
    """Open a .ckpt file, with the weights at its top level or under `state_dict`; entries that are no tensors are left out.

    Raises:
        ValueError: The file is truncated, no checkpoint, or names a global that is not known to be harmless.
    """
    content = _load(path)
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return {str(key): _lazy(value) for key, value in weights.items() if isinstance(value, torch.Tensor)}


def _load(path: Path) -> Any:
    try:
        with _stubs(path):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        offender = re.search(r"GLOBAL (\S+)", str(error))
        if offender is None:
            raise ValueError(f"{path}: not a checkpoint, or one with more than weights: {_reason(error)}") from error
        raise ValueError(f"{path}: refused: it names {offender[1]}, which could run code; nothing was run") from error
    except (RuntimeError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"{path}: truncated, or not a checkpoint: {' '.join(str(error).split())[:200]}") from error


@contextmanager
def _stubs(path: Path) -> Iterator[None]:
    """Allow the known leftovers that the file names, each as a stub."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # not a zip file: torch's old format, read without stubs
        names = []
    stubs: list[Any] = [
        (type(name.rpartition(".")[2], (_Leftover,), {}), name) for name in names if name.split(".")[0] in HARMLESS
    ]
    with torch.serialization.safe_globals(stubs):
        yield


def _reason(error: Exception) -> str:
    """What torch says, without its advice to turn the check off."""
    return " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())[:200]


def _lazy(tensor: torch.Tensor) -> LazyTensor:
    dtype = _DTYPES.get(tensor.dtype, str(tensor.dtype))
    return LazyTensor(tuple(tensor.shape), dtype, lambda: _to_numpy(tensor))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
