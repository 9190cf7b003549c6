"""Tensors that are computed from others piece by piece, so that none of them has to be in memory whole.

A piece is a run of consecutive values of a flattened tensor. Each value of the result depends on the values of the source
tensors at the same index, and perhaps on numbers that were measured over the whole sources before.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from stages.checkpoints.files.casting import widened
from stages.checkpoints.files.tensors import Array, LazyTensor

STRIDE = 2**17
"""Values of a piece: few enough that the sources' pieces and what is computed from them fit into a core's cache."""

Pieces = Callable[[], Iterator[tuple[Array, ...]]]
"""Iterates over several tensors at once: each item is the same piece of every tensor, float32 and flat. Can be called again."""

_MEASURING = threading.Lock()


@dataclass(frozen=True)
class ComputedTensor(LazyTensor):
    """A tensor that is computed from others.

    Attributes:
        function: Computes a piece: called with the index of its first value in the flattened tensor, then with the same piece
            of every source, float32 and flat, which it may overwrite; returns the piece of this tensor.
    """

    function: Callable[..., Array] = np.asarray


def computed(
    sources: Sequence[LazyTensor],
    function: Callable[..., Array],
    measure: Callable[[Pieces], tuple[float, ...]] | None = None,
) -> ComputedTensor:
    """A tensor with the shape and dtype of the first source, computed when it is read or written.

    Args:
        sources: Floating-point tensors with the same number of values.
        function: Computes a piece: called with the index of its first value in the flattened tensor, with what `measure` gave,
            and with the same piece of every source, float32 and flat, which it may overwrite; returns float32.
        measure: Computes what `function` has to know of the whole sources, such as their dot product, in a pass of its own
            before the first piece. Threads take turns in measuring, because a measurement may hold a whole tensor in memory.
            Without it `function` gets an empty tuple.
    """
    flat = [source.reshape((source.size,)) for source in sources]

    def pieces() -> Iterator[tuple[Array, ...]]:
        for start in range(0, flat[0].size, STRIDE):
            stop = min(start + STRIDE, flat[0].size)
            yield tuple(widened(source.rows(start, stop).read()) for source in flat)

    @cache
    def measured() -> tuple[float, ...]:
        return measure(pieces) if measure else ()

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
