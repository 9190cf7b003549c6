import numpy as np
import pytest

from stages.checkpoints.halves import HALF_OVERFLOW, INFINITY, Scratch, are_finite, largest, narrow, widen

EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = EVERY_HALF[np.isfinite(EVERY_HALF)]


def narrowed(values):
    out = np.empty(len(values), np.float16)
    narrow(values, out, Scratch.of(len(values)))
    return out


def test_every_half_is_widened_as_astype_does():
    out = np.empty(len(FINITE), np.float32)
    widen(FINITE, out)
    assert out.tobytes() == FINITE.astype(np.float32).tobytes()


def test_around_every_rounding_boundary_values_are_narrowed_as_astype_does():
    halves = np.sort(FINITE[:].astype(np.float64))
    middles = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)
    values = [FINITE.astype(np.float32), middles]
    for direction in (np.inf, -np.inf):
        values += [np.nextafter(value, np.float32(direction)) for value in values[:2]]
    together = np.concatenate([value[np.abs(value) < 65520] for value in values])
    assert len(together) > 300_000
    assert narrowed(together).tobytes() == together.astype(np.float16).tobytes()


@pytest.mark.parametrize("scale", [1e-40, 1e-9, 1e-7, 1e-5, 1e-2, 1.0, 1e4])
def test_random_values_are_narrowed_as_astype_does(scale):
    values = (np.random.default_rng(0).uniform(-6, 6, 200_000) * scale).astype(np.float32)
    assert narrowed(values).tobytes() == values.astype(np.float16).tobytes()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_what_is_not_finite_is_seen(value):
    single = np.array([1, value, -3], np.float32)
    assert largest(single, Scratch.of(3)) >= INFINITY
    assert not are_finite(single.astype(np.float16), Scratch.of(3))


def test_finite_values_are_finite():
    assert are_finite(FINITE, Scratch.of(len(FINITE)))
    assert largest(np.array([1, -65519.996, 3], np.float32), Scratch.of(3)) < HALF_OVERFLOW
    assert largest(np.array([1, -65520, 3], np.float32), Scratch.of(3)) == HALF_OVERFLOW
