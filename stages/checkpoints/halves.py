"""Between half and single precision, in passes that numpy vectorises: its own casts go value by value, and take twice as long.

Both ways are bit for bit what `astype` gives; that is tested for every half and around every rounding boundary.
"""

from typing import NamedTuple

import numpy as np

Array = np.ndarray

HALF_OVERFLOW = 0x477FF000
"""Bits of 65520, the smallest float32 that is rounded to infinity in half precision."""
INFINITY = 0x7F800000
"""Bits of infinity in float32: from here on, without the sign, nothing is a finite number."""

_FRACTION = np.uint32(13)  # bits that a half's fraction is shorter by
_REBIASED = np.float32(2.0**112)  # of float32's exponent to a half's
_SIGN_AND_VALUE = np.uint32(0x8FFFE000).view(np.int32)
_ROUND_AND_REBIAS = np.uint32((0xFFF - (112 << 23)) % 2**32)
_SMALLEST_NORMAL = np.uint32(113 << 23)  # bits of 2^-14; what is smaller is subnormal as a half
_NO_SIGN = np.uint32(0x7FFFFFFF)
_HALF_SIGN = np.uint16(0x8000)


class Scratch(NamedTuple):
    """Memory for the steps between, so that they cause no page faults; one a thread."""

    words: Array
    halves: Array

    @classmethod
    def of(cls, size: int) -> "Scratch":
        """For up to `size` values at once."""
        return cls(np.empty(size, np.uint32), np.empty(size, np.uint16))


def widen(halves: Array, out: Array) -> None:
    """Write finite float16 values to `out`, float32. Inf and NaN become numbers above 65504: `are_finite` tells."""
    bits = out.view(np.int32)
    np.copyto(bits, halves.view(np.int16))  # the sign fills the upper half of the word
    np.left_shift(bits, np.int32(13), out=bits)
    np.bitwise_and(bits, _SIGN_AND_VALUE, out=bits)
    np.multiply(out, _REBIASED, out=out)


def narrow(values: Array, out: Array, scratch: Scratch) -> None:
    """Round finite float32 values below 65520 to `out`, float16: to nearest, ties to even."""
    bits, halves = values.view(np.uint32), out.view(np.uint16)
    words, signs = scratch.words[: len(values)], scratch.halves[: len(values)]
    np.right_shift(bits, _FRACTION, out=words)
    np.bitwise_and(words, np.uint32(1), out=words)
    np.add(words, bits, out=words)
    np.add(words, _ROUND_AND_REBIAS, out=words)
    np.right_shift(words, _FRACTION, out=words)
    np.copyto(halves, words, casting="unsafe")
    np.right_shift(bits, np.uint32(16), out=words)
    np.copyto(signs, words, casting="unsafe")
    np.bitwise_and(signs, _HALF_SIGN, out=signs)
    np.bitwise_or(halves, signs, out=halves)
    np.bitwise_and(bits, _NO_SIGN, out=words)
    subnormal = np.flatnonzero(words < _SMALLEST_NORMAL)
    if len(subnormal):
        out[subnormal] = values[subnormal].astype(np.float16)


def largest(values: Array, scratch: Scratch) -> int:
    """Bits of the largest magnitude among float32 values; NaN counts as larger than infinity."""
    words = scratch.words[: len(values)]
    np.bitwise_and(values.view(np.uint32), _NO_SIGN, out=words)
    return int(words.max(initial=0))


def are_finite(halves: Array, scratch: Scratch) -> bool:
    """Whether float16 values are all finite."""
    magnitudes = scratch.halves[: len(halves)]
    np.bitwise_and(halves.view(np.uint16), np.uint16(0x7FFF), out=magnitudes)
    return int(magnitudes.max(initial=0)) < 0x7C00
