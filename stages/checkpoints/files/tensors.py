"""Tensors that are read when they are needed, and the safetensors files they come from and go to."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from stages.checkpoints.files.reading import check_is_file, is_shallow, refuse_stand_in
from stages.checkpoints.messages import one_line

Array = np.ndarray
Recipe = Mapping[str, Any]

RECIPE_KEY = "recipe"
FLOATS = ("BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2")
NUMPY_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # numpy has no such dtype: the bits are read, and widened to float32
    "F8_E4M3": "|u1",  # nor these two
    "F8_E5M2": "|u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
MAX_HEADER = 100_000_000  # the library's limit; trainers write megabytes of metadata
MAX_QUOTES = 1_000_000  # ten a tensor, SDXL's has 30,000; more are made to exhaust memory
MOST_AT_ONCE = 2**30  # bytes; macOS reads and writes less than 2**31


class Checksum(Protocol):
    """A checksum that a file has of a part of it."""

    def check(self) -> None:
        """Raise a `ValueError` that names the file if its content does not have the checksum; computed once."""


@dataclass(frozen=True)
class Stored:
    """Where the values of a tensor lie in a file: uncompressed, contiguous, little-endian.

    Attributes:
        path: The file.
        offset: Of the first byte.
        size: In bytes.
        checksum: Of the part of the file that they lie in; None where the file says none.
    """

    path: Path
    offset: int
    size: int
    checksum: Checksum | None = None

    def check(self) -> None:
        """Raise a `ValueError` if the file is damaged there."""
        if self.checksum is not None:
            self.checksum.check()

    def read(self, dtype: str) -> Array:
        """The values, flat. What numpy lacks, bfloat16 and float8, becomes float32, which holds it exactly."""
        self.check()
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            values = np.empty(self.size // np.dtype(NUMPY_DTYPES[dtype]).itemsize, NUMPY_DTYPES[dtype])
            view, done = values.view(np.uint8).data, 0
            while done < self.size:
                count = file.readinto(view[done : done + MOST_AT_ONCE])
                if not count:
                    raise ValueError(f"{self.path}: truncated: it ends before byte {self.offset + self.size}")
                done += count
        return _WIDENED[dtype](values) if dtype in _WIDENED else values


def _float8_e4m3() -> Array:
    """Every value of float8_e4m3fn, by its bits (Micikevicius et al. 2022, arXiv:2209.05433, table 1)."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    magnitude = np.where(exponent > 0, np.ldexp(1 + mantissa / 8, exponent - 7), np.ldexp(mantissa / 8, -6))
    magnitude[bits & 127 == 127] = np.nan
    return np.where(bits > 127, -magnitude, magnitude).astype(np.float32)


_FLOAT8_E4M3 = _float8_e4m3()
_WIDENED: Mapping[str, Callable[[Array], Array]] = {
    "BF16": lambda bits: (bits.astype(np.uint32) << 16).view(np.float32),
    "F8_E4M3": lambda bits: _FLOAT8_E4M3[bits],
    "F8_E5M2": lambda bits: (bits.astype(np.uint16) << 8).view(np.float16).astype(np.float32),  # the upper half of float16
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is known by shape and dtype, and read when asked for.

    Attributes:
        shape: Its shape.
        dtype: As safetensors names it: "F16", "I64".
        load: Reads or computes the values. bfloat16 and float8 arrive as float32, which holds them exactly.
        stored: Where the values lie, for those who read them in their own way; None for computed ones.
        sources: What it is computed of.
        keeps_dtype: Whether it is written in its own dtype, whatever the others are written in.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Array]
    stored: Stored | None = None
    sources: tuple["LazyTensor", ...] = ()
    keeps_dtype: bool = field(default=False, kw_only=True)

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    def read(self) -> Array:
        """The values, in `shape`."""
        return self.load().reshape(self.shape)

    @property
    def files(self) -> tuple[Path, ...]:
        """Where the values lie, or those that they are computed of; each file once."""
        found = [self.stored.path] if self.stored else [path for source in self.sources for path in source.files]
        return tuple(dict.fromkeys(found))

    def reshape(self, shape: tuple[int, ...]) -> "LazyTensor":
        """The same values in another shape, still unread."""
        return replace(self, shape=shape)

    def rows(self, start: int, stop: int) -> "LazyTensor":
        """Some of its rows, still unread."""
        shape = (stop - start, *self.shape[1:])
        if self.stored is None:
            return replace(self, shape=shape, load=lambda: self.read()[start:stop])
        row = self.stored.size // self.shape[0]
        place = replace(self.stored, offset=self.stored.offset + start * row, size=(stop - start) * row)
        return stored_tensor(shape, self.dtype, place)


def stored_tensor(shape: tuple[int, ...], dtype: str, place: Stored) -> LazyTensor:
    """A tensor that lies in a file."""
    return LazyTensor(shape, dtype, lambda: place.read(dtype), place)


LazyTensors = Mapping[str, LazyTensor]


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Open a safetensors file; its tensors are read one by one, when asked for.

    The library checks the header (lengths, shapes, offsets that overlap or leave holes); of two tensors with one key it
    would take the last without a word.

    Raises:
        ValueError: The file is truncated, not a safetensors file, or holds a dtype that is not known here.
    """
    tensors = {}
    data_start, header = _read_header(path)
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        if entry["dtype"] not in NUMPY_DTYPES:
            raise ValueError(f"{path}: {key} is of dtype {entry['dtype']}; known: {', '.join(NUMPY_DTYPES)}")
        start, stop = entry["data_offsets"]
        tensors[key] = stored_tensor(tuple(entry["shape"]), entry["dtype"], Stored(path, data_start + start, stop - start))
    check_keys(path, tensors)
    return dict(sorted(tensors.items()))


def check_keys(path: Path, tensors: "LazyTensors") -> None:
    """Refuse keys with line breaks or other characters that cannot be printed; `ValueError` names the first."""
    for key in tensors:
        if not key.isprintable():
            raise ValueError(f"{path}: a key with characters that cannot be shown: {key[:100]!r}")


def read_recipe(path: Path) -> Recipe:
    """The recipe in the metadata of a file that this room wrote; empty for any other file."""
    if path.suffix != ".safetensors":
        return {}
    try:
        recipe = json.loads(read_metadata(path).get(RECIPE_KEY, "{}"))
    except (json.JSONDecodeError, RecursionError):
        return {}
    return recipe if isinstance(recipe, dict) and is_shallow(recipe) else {}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, empty where it has none."""
    return _read_header(path)[1].get("__metadata__") or {}


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """The checked header of a safetensors file, and the offset of the byte behind it."""
    check_is_file(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8).ljust(8, b"\xff"), "little")
        size = path.stat().st_size
        if length > min(MAX_HEADER, size - 8):
            refuse_stand_in(path)
            limit = "the file" if length > size - 8 else f"the {MAX_HEADER:,} that are read"
            raise ValueError(
                f"{path}: truncated, or not a safetensors file: a header of {length:,} bytes is longer than {limit}"
            )
        text = file.read(length)
    if text.count(b'"') - text.count(b'\\"') > MAX_QUOTES:
        raise ValueError(f"{path}: a header of more than {MAX_QUOTES:,} names and values, which no checkpoint has")
    try:
        safe_open(path, framework="np")
        return 8 + length, json.loads(text, object_pairs_hook=_without_duplicates)
    except (SafetensorError, ValueError, RecursionError) as error:
        refuse_stand_in(path)
        raise ValueError(f"{path}: truncated, or not a safetensors file: {one_line(error)[:200]}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{key} is there twice")
        values[key] = value
    return values


def sha256(path: Path) -> str:
    """Hex digest of a file; computed once a process, as long as the file stays the same."""
    state = path.stat()
    return _digest(path, state.st_ino, state.st_mtime_ns, state.st_size)


@cache
def _digest(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
