"""Writing safetensors files in one pass: tensors are read, computed, rounded and written piece by piece.

Each thread takes the next piece, reads it, computes and writes it to its place, so that reading, computing and writing
overlap; what a piece holds depends on neither the others nor the number of threads.
"""

import errno
import hashlib
import json
import mmap
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from stages.checkpoints.files.casting import are_finite, cast
from stages.checkpoints.files.chunks import STRIDE, ComputedTensor
from stages.checkpoints.files.tensors import (
    FLOATS,
    MOST_AT_ONCE,
    NUMPY_DTYPES,
    RECIPE_KEY,
    Array,
    LazyTensor,
    LazyTensors,
    Recipe,
)
from stages.checkpoints.messages import listed

PIECE = 2**20
"""Values that are read and written at once."""
MOST_THREADS = 8
"""More would wait for the memory; each takes some MB."""
_LARGE = 2**22
_NOT_FINITE = "not a finite number (NaN or Inf)"
_ALL_AT_ONCE = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # instead of one page after another
_READ_INTO = getattr(os, "preadv", None)  # older macOS has none
_CODES = {"float16": "F16", "float32": "F32"}
_WIDENED = ("F16", "BF16", "F32")  # what is merged piece by piece


class NotFiniteError(ValueError):
    """Tensors of the sources hold NaN or Inf, so another dtype would not help."""


def write_safetensors(
    path: Path,
    tensors: LazyTensors,
    dtype: str,
    recipe: Recipe,
    threads: int | None = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
    digests: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write tensors, rounded once to `dtype` (integers, and what keeps its dtype, stay as they are), with the recipe.

    The same tensors and recipe give the same bytes, for any number of threads; they are those that the safetensors
    library would write, whose order of several metadata changes from run to run.

    Args:
        path: Where to; on failure nothing is left there.
        tensors: By key.
        dtype: "float16" or "float32".
        recipe: What the tensors were made of.
        threads: How many pieces are worked on at once; None for one a processor.
        metadata: More of it, beside the recipe.
        digests: Names of metadata that get the sha256 of the tensors' bytes, all that follows the header; each with what stands
            before the digest.

    Raises:
        ValueError: A tensor is not finite, in itself (`NotFiniteError`) or in `dtype`; all such keys are named, with the files
            at fault.
        OSError: The disk is full.
    """
    described = {**metadata, RECIPE_KEY: json.dumps(recipe, sort_keys=True)}

    def lay_out(digest: str) -> tuple[bytes, list[_Entry]]:
        of_tensors = {name: f"{before}{digest}" for name, before in digests.items()}
        return _lay_out(tensors, dtype, dict(sorted({**described, **of_tensors}.items())))

    header, entries = lay_out("0" * 64)
    check_space(path.parent, len(header) + sum(entry.size for entry in entries))
    try:
        with path.open("wb") as file:
            file.write(header)
            file.flush()
            broken = _write_entries(file.fileno(), len(header), entries, threads or _processors())
            if broken:
                raise _complaint({key: tensors[key] for key in broken}, dtype)
        if digests:
            _rewrite_header(path, len(header), lambda digest: lay_out(digest)[0])
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OSError(f"{path}: the disk became full while the file was written") from error
        raise
    path.chmod(0o644)


def _rewrite_header(path: Path, size: int, header_of: Callable[[str], bytes]) -> None:
    """Write the header of a file again, with the digest of what follows it; its size stays the same."""
    with path.open("r+b") as file:
        file.seek(size)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        file.write(header_of(digest))


def written_size(tensors: LazyTensors, dtype: str) -> int:
    """How many bytes the tensors take in a file, without its header."""
    return sum(_entry(key, tensor, dtype, 0).size for key, tensor in tensors.items())


def check_space(folder: Path, size: int) -> None:
    """Refuse to begin what would not fit on the disk that holds `folder`."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(f"{folder}: {size / 1e9:.2f} GB are to be written and {free / 1e9:.2f} GB are free: make room first")


class _Entry(NamedTuple):
    """One tensor of the file to be: `size` bytes of `code` at `offset` behind the header."""

    key: str
    tensor: LazyTensor
    code: str
    offset: int
    size: int


class _Piece(NamedTuple):
    """Values `start` to `stop` of an entry, in the order in which they lie in memory."""

    entry: _Entry
    start: int
    stop: int


def _entry(key: str, tensor: LazyTensor, dtype: str, offset: int) -> _Entry:
    code = _CODES[dtype] if tensor.dtype in FLOATS and not tensor.keeps_dtype else tensor.dtype
    return _Entry(key, tensor, code, offset, tensor.size * np.dtype(NUMPY_DTYPES[code]).itemsize)


def _lay_out(tensors: LazyTensors, dtype: str, metadata: Mapping[str, str]) -> tuple[bytes, list[_Entry]]:
    """The file's header, and its tensors in the order of the safetensors library: wide dtypes first, then by key."""
    entries: list[_Entry] = []
    offset = 0
    by_width = {key: -np.dtype(NUMPY_DTYPES[_entry(key, tensor, dtype, 0).code]).itemsize for key, tensor in tensors.items()}
    for key in sorted(tensors, key=lambda key: (by_width[key], key)):
        entries.append(_entry(key, tensors[key], dtype, offset))
        offset += entries[-1].size
    header = {"__metadata__": metadata} | {
        entry.key: {
            "dtype": entry.code,
            "shape": list(entry.tensor.shape),
            "data_offsets": [entry.offset, entry.offset + entry.size],
        }
        for entry in entries
    }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, entries


def _write_entries(target: int, data_start: int, entries: Sequence[_Entry], threads: int) -> list[str]:
    """Write all entries; returns the sorted keys of those that are not finite."""
    writer = _Writer(target, data_start)
    pool = ThreadPoolExecutor(threads, "write")
    try:
        done = pool.map(writer.write, _pieces(entries))
        return sorted({key for key in done if key is not None})
    finally:
        pool.shutdown(cancel_futures=True)
        writer.close()


def _complaint(broken: LazyTensors, dtype: str) -> ValueError:
    """Which tensors are not finite, by the files that are at fault."""
    causes: dict[str, list[str]] = {}
    for key, tensor in broken.items():
        for source, fault in _faults(tensor, dtype):
            files = " and ".join(map(str, source.files))
            causes.setdefault(f"{files}: {fault}" if files else fault, []).append(key)
    error = NotFiniteError if all(cause.endswith(_NOT_FINITE) for cause in causes) else ValueError
    return error("; ".join(f"{cause}: {listed(keys)}" for cause, keys in causes.items()))


def _faults(tensor: LazyTensor, dtype: str) -> list[tuple[LazyTensor, str]]:
    sources = tensor.sources or (tensor,)
    faulty = [source for source in sources if not are_finite(source.read())]
    return [(source, _NOT_FINITE) for source in faulty] or [(tensor, f"larger than {dtype} holds")]


def _pieces(entries: Sequence[_Entry]) -> Iterator[_Piece]:
    for entry in entries:
        count = entry.tensor.size
        step = PIECE if _streamed(entry) else max(count, 1)
        yield from (_Piece(entry, start, min(start + step, count)) for start in range(0, count, step))


def _streamed(entry: _Entry) -> tuple[LazyTensor, ...]:
    """The stored tensors that an entry is read or computed from piece by piece; empty if it has to be read whole."""
    tensor = entry.tensor
    sources = tensor.sources if isinstance(tensor, ComputedTensor) else (tensor,)
    return sources if all(source.stored and source.dtype in _WIDENED for source in sources) else ()


def _processors() -> int:
    own = getattr(os, "sched_getaffinity", None)  # macOS has none
    return min(len(own(0)) if own else os.cpu_count() or 1, MOST_THREADS)


class _Buffers(threading.local):
    """A thread's own memory, used again for every piece."""

    def __init__(self) -> None:
        self.wide = [np.empty(STRIDE, np.float32) for _ in range(3)]
        self.out = np.empty(4 * PIECE, np.uint8)


class _Writer:
    """Makes pieces and writes them to their places in an open file; used by several threads."""

    def __init__(self, target: int, data_start: int) -> None:
        self._target = target
        self._data_start = data_start
        self._buffers = _Buffers()
        self._one_large = threading.Lock()
        self._opening = threading.Lock()
        self._files: dict[Path, int] = {}

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)

    def write(self, piece: _Piece) -> str | None:
        """Write a piece; returns its key if it is not finite."""
        with np.errstate(all="ignore"):  # what overflows or is NaN is refused by name
            if _streamed(piece.entry):
                return self._write_streamed(piece)
            if piece.stop < _LARGE:
                return self._write_whole(piece.entry)
            with self._one_large:  # memory holds one such tensor at a time
                return self._write_whole(piece.entry)

    def _write_streamed(self, piece: _Piece) -> str | None:
        entry = piece.entry
        out = self._buffers.out.view(NUMPY_DTYPES[entry.code])[: piece.stop - piece.start]
        if not isinstance(entry.tensor, ComputedTensor) and entry.tensor.dtype == entry.code:
            self._get(entry.tensor, piece.start, out)
        else:
            self._compute(piece, out)
        # In strides: what was just computed is read out of the cache.
        if not all(are_finite(out[start : start + STRIDE]) for start in range(0, len(out), STRIDE)):
            return entry.key
        self._put(out, entry.offset + piece.start * out.itemsize)
        return None

    def _compute(self, piece: _Piece, out: Array) -> None:
        tensor = piece.entry.tensor
        raws = [self._map(source, piece.start, len(out)) for source in _streamed(piece.entry)]
        for start in range(0, len(out), STRIDE):
            part = slice(start, start + STRIDE)
            wide = [self._widened(raw[part], buffer) for raw, buffer in zip(raws, self._buffers.wide, strict=False)]
            values = tensor.function(piece.start + start, *wide) if isinstance(tensor, ComputedTensor) else wide[0]
            cast(values, out[part])

    def _widened(self, raw: Array, buffer: Array) -> Array:
        """Values in float32, in the buffer."""
        wide = buffer[: len(raw)]
        if raw.dtype == np.uint16:  # the bits of bfloat16
            np.left_shift(raw, np.uint32(16), out=wide.view(np.uint32), dtype=np.uint32)
        else:
            cast(raw, wide)
        return wide

    def _write_whole(self, entry: _Entry) -> str | None:
        values = np.ascontiguousarray(entry.tensor.read()).reshape(-1)
        if entry.tensor.dtype in FLOATS:
            rounded = np.empty(len(values), NUMPY_DTYPES[entry.code])
            for start in range(0, len(values), STRIDE):
                cast(values[start : start + STRIDE], rounded[start : start + STRIDE])
            if not are_finite(rounded):
                return entry.key
            values = rounded
        self._put(values, entry.offset)
        return None

    def _map(self, tensor: LazyTensor, start: int, count: int) -> Array:
        """`count` values of a tensor from `start` on, mapped into memory; not to be written to."""
        dtype = np.dtype(NUMPY_DTYPES[tensor.dtype])
        path, file, offset = self._place(tensor, start * dtype.itemsize)
        page = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        stop = offset + count * dtype.itemsize
        try:
            mapped = mmap.mmap(file, stop - page, _ALL_AT_ONCE, mmap.PROT_READ, offset=page)
        except ValueError as error:
            raise ValueError(f"{path}: truncated: it ends before byte {stop}") from error
        values = np.frombuffer(mapped, dtype, count, offset - page)
        return values if values.flags.aligned else values.copy()

    def _get(self, tensor: LazyTensor, start: int, out: Array) -> None:
        """Read the values of a tensor from `start` on."""
        if _READ_INTO is None:
            np.copyto(out, self._map(tensor, start, len(out)))
            return
        path, file, offset = self._place(tensor, start * out.itemsize)
        view, done = memoryview(out.view(np.uint8).data), 0
        while done < len(view):
            count = _READ_INTO(file, [view[done:]], offset + done)
            if not count:
                raise ValueError(f"{path}: truncated: it ends before byte {offset + len(view)}")
            done += count

    def _place(self, tensor: LazyTensor, skipped: int) -> tuple[Path, int, int]:
        """The file with the values of a tensor, opened once for all, and where they begin behind the first `skipped` bytes."""
        place = tensor.stored
        assert place is not None
        place.check()
        with self._opening:
            if place.path not in self._files:
                self._files[place.path] = os.open(place.path, os.O_RDONLY)
        return place.path, self._files[place.path], place.offset + skipped

    def _put(self, values: Array, offset: int) -> None:
        view, done = memoryview(values.view(np.uint8).data), 0
        while done < len(view):
            done += os.pwrite(self._target, view[done : done + MOST_AT_ONCE], self._data_start + offset + done)
