"""Reading .ckpt files: pickles made by torch.save, of which nothing is ever executed.

torch is not needed: `pickle_values` says which tensors there are, and their numbers lie uncompressed in the file, behind
the pickle (torch's old format) or as entries of a zip file (since torch 1.6), from where they are read one by one.
`torch.load(weights_only=True)` is safe too, but it refuses leftovers of trainers unless stubs are registered for the
whole process, reads everything into memory at once and costs the import of torch.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.checkpoints.files.pickle_objects import StoredTensor
from stages.checkpoints.files.pickle_values import MAX_BYTES, Pickle, read_pickle
from stages.checkpoints.files.reading import refuse_stand_in
from stages.checkpoints.files.tensors import NUMPY_DTYPES, Array, LazyTensor, Stored, check_keys, stored_tensor
from stages.checkpoints.files.zip_entries import is_zip, zip_entries
from stages.checkpoints.messages import one_line

_DTYPES = {
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "float8_e4m3fn": "F8_E4M3",  # of torch's newer dtypes, which have no storage class, the dtype is said
    "float8_e5m2": "F8_E5M2",
    "UntypedStorage": "U8",
}
# torch's old format begins with three pickles: this number, the version of the protocol, and facts about the machine.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_PREAMBLE_BYTES = 4096
_MOST_OF_A_REASON = 300  # characters; pickletools shows all that it could not read

Places = Mapping[str, Stored]


def open_ckpt(path: Path) -> dict[str, LazyTensor]:
    """Open a .ckpt file, with the weights at its top level or under `state_dict`; entries that are no tensors are left out.

    Raises:
        ValueError: The file is truncated, no checkpoint, or names a global that is not known to be harmless.
    """
    try:
        content, places = _read_zip(path) if is_zip(path) else _read_old_format(path)
        weights = _weights(content)
        tensors = {key: _lazy(key, value, places) for key, value in weights.items() if isinstance(value, StoredTensor)}
    except (ValueError, OverflowError) as error:
        reason = one_line(error)[:_MOST_OF_A_REASON]
        if not reason.startswith("refused: "):
            refuse_stand_in(path)
            reason = f"truncated, or not a checkpoint: {reason}"
        raise ValueError(f"{path}: {reason}") from error
    check_keys(path, tensors)
    return tensors


def _weights(content: Any) -> Mapping[str, Any]:
    """The weights: the content itself, or what it holds under `state_dict`, as often as one holds another."""
    outer: set[int] = set()
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        outer.add(id(content))
        content = content["state_dict"]
        if id(content) in outer:
            raise ValueError("its state_dict holds itself")
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not a checkpoint")
    return {key: value for key, value in content.items() if isinstance(key, str)}


def _read_zip(path: Path) -> tuple[Any, Places]:
    entries = zip_entries(path)
    name = next((name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")), None)
    if name is None:
        raise ValueError("a zip file without data.pkl")
    root = name.removesuffix("data.pkl")
    if f"{root}byteorder" in entries and _content(entries[f"{root}byteorder"], 16) != b"little":
        raise ValueError("it was written on a big-endian machine")
    folder = f"{root}data/"
    places = {name.removeprefix(folder): place for name, place in entries.items() if name.startswith(folder)}
    return read_pickle(_content(entries[name], MAX_BYTES)).value, places


def _content(place: Stored, limit: int) -> bytes:
    if place.size > limit:
        raise ValueError(f"its pickle has {place.size:,} bytes, more than the {limit:,} that are read")
    return place.read("U8").tobytes()


def _read_old_format(path: Path) -> tuple[Any, Places]:
    position, preamble = 0, []
    for _ in range(3):
        part = _pickle_at(path, position, _PREAMBLE_BYTES)
        position += part.size
        preamble.append(part.value)
    if preamble[:2] != [_MAGIC, _PROTOCOL]:
        raise ValueError("a pickle that torch.save did not make")
    if not isinstance(preamble[2], dict) or preamble[2].get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine")
    content = _pickle_at(path, position, MAX_BYTES)
    keys = _pickle_at(path, position + content.size, MAX_BYTES)
    return content.value, _places(path, position + content.size + keys.size, keys.value, content.kinds)


def _pickle_at(path: Path, position: int, limit: int) -> Pickle:
    with path.open("rb") as file:
        file.seek(position)
        return read_pickle(file.read(limit))


def _places(path: Path, position: int, keys: Any, kinds: Mapping[str, str]) -> Places:
    """Where the storages lie in torch's old format: one behind the other, each behind its length."""
    places, end = {}, path.stat().st_size
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str | int):
            raise ValueError(f"a storage is called by a {type(key).__name__}")
        length = int(Stored(path, position, 8).read("I64")[0])
        size = length * _item_size(kinds.get(str(key), ""))
        if length < 0 or position + 8 + size > end:
            raise ValueError(f"storage {str(key)[:100]} has {length:,} numbers, which the file has no room for")
        places[str(key)] = Stored(path, position + 8, size)
        position += 8 + size
    return places


def _dtype(kind: str) -> str:
    if kind not in _DTYPES:
        raise ValueError(f"tensors of {kind or 'an unknown kind'} are not read; known: {', '.join(_DTYPES)}")
    return _DTYPES[kind]


def _item_size(kind: str) -> int:
    return np.dtype(NUMPY_DTYPES[_dtype(kind)]).itemsize


def _lazy(key: str, tensor: StoredTensor, places: Places) -> LazyTensor:
    storage, shape = tensor.storage, tensor.shape
    if storage.key not in places:
        raise ValueError(f"{key}: its storage {storage.key[:100]} is not in the file")
    _check(key, tensor, places[storage.key])
    item, count = _item_size(storage.kind), math.prod(shape)
    first = places[storage.key].offset + item * (storage.start + tensor.offset)
    if count == 0 or _is_contiguous(tensor):
        return stored_tensor(shape, _dtype(storage.kind), replace(places[storage.key], offset=first, size=item * count))
    span = replace(places[storage.key], offset=first, size=item * (1 + _last(tensor) - tensor.offset))
    dtype = _dtype(storage.kind)
    stored = stored_tensor((span.size // item,), dtype, span)
    return LazyTensor(shape, dtype, lambda: _gather(span.read(dtype), tensor), sources=(stored,))


def _check(key: str, tensor: StoredTensor, place: Stored) -> None:
    """A tensor must lie within its storage, and its storage within the file."""
    storage = tensor.storage
    numbers = (tensor.offset, *tensor.shape, *tensor.strides, storage.start, storage.length)
    if min(numbers) < 0:
        raise ValueError(f"{key}: a negative size, {tensor.shape}")
    fits = _item_size(storage.kind) * (storage.start + storage.length) <= place.size
    if not fits or (0 not in tensor.shape and _last(tensor) >= storage.length) or math.prod(tensor.shape) > storage.length:
        raise ValueError(f"{key}: {tensor.shape} does not fit in its storage")


def _last(tensor: StoredTensor) -> int:
    """Index of a tensor's last number in its storage."""
    return tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))


def _is_contiguous(tensor: StoredTensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _gather(values: Array, tensor: StoredTensor) -> Array:
    """Numbers that do not lie in order, such as those of a transposed tensor."""
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False))
