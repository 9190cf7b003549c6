"""Tensors that are computed of others piece by piece, so that none of them need be held whole."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from stages.checkpoints.files.casting import widened
from stages.checkpoints.files.tensors import Array, LazyTensor

STRIDE = 2**17
"""Values that are computed at once: as many as stay, with the steps between, about in a core's cache."""

Pieces = Callable[[], Iterator[tuple[Array, ...]]]
"""Goes through tensors together: gives the same piece of each, float32 and flat, from the first to the last."""

_MEASURING = threading.Lock()


@dataclass(frozen=True)
class ComputedTensor(LazyTensor):
    """A tensor that is computed of others.

    Attributes:
        function: Of the place of a piece's first value and of that piece of every source, which are of its size and of
            floating point, and which it may overwrite; gives the piece of this tensor.
    """

    function: Callable[..., Array] = np.asarray


def computed(
    sources: Sequence[LazyTensor], function: Callable[..., Array], measure: Callable[[Pieces], Any] | None = None
) -> ComputedTensor:
    """Compute a tensor of the shape and dtype of the first source.

    Args:
        sources: Tensors of one size, each of floating point.
        function: Of the place of a piece's first value, of what `measure` gave, and of that piece of every source, float32
            and flat, which it may overwrite; gives the piece of the tensor in float32.
        measure: Finds out, before the first piece is computed, what the function must know of the whole sources. One tensor
            at a time is measured, whatever the number of threads, so that memory holds no more.
    """
    flat = [source.reshape((source.size,)) for source in sources]

    def pieces() -> Iterator[tuple[Array, ...]]:
        for start in range(0, flat[0].size, STRIDE):
            stop = min(start + STRIDE, flat[0].size)
            yield tuple(widened(source.rows(start, stop).read()) for source in flat)

    @cache
    def measured() -> Any:
        return measure and measure(pieces)

    def piece_at(start: int, *thetas: Array) -> Array:
        with _MEASURING:
            known = measured()
        return function(start, known, *thetas)

    def load() -> Array:
        values = np.empty(flat[0].size, np.float32)
        for number, thetas in enumerate(pieces()):
            own = [theta.copy() for theta in thetas]
            values[number * STRIDE : (number + 1) * STRIDE] = piece_at(number * STRIDE, *own)
        return values

    return ComputedTensor(sources[0].shape, sources[0].dtype, load, None, tuple(sources), piece_at)
