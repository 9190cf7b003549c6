import subprocess
import sys

import numpy as np
import pytest

from stages.checkpoints.files.casting import are_finite, cast, widened

EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = EVERY_HALF[np.isfinite(EVERY_HALF)]


def cast_both_ways(values, dtype):
    """What `cast` and numpy make of values."""
    ours = np.empty(len(values), dtype)
    cast(values, ours)
    with np.errstate(over="ignore"):
        return ours, values.astype(dtype)


def test_every_half_is_widened_to_the_same_bits():
    ours, theirs = cast_both_ways(FINITE, np.float32)
    assert ours.tobytes() == theirs.tobytes() == widened(FINITE).tobytes()


def test_what_is_not_finite_stays_so():
    ours, theirs = cast_both_ways(EVERY_HALF[~np.isfinite(EVERY_HALF)], np.float32)
    np.testing.assert_array_equal(ours, theirs)
    back, _ = cast_both_ways(ours, np.float16)
    np.testing.assert_array_equal(back, EVERY_HALF[~np.isfinite(EVERY_HALF)])


def test_around_every_rounding_boundary_values_are_rounded_to_the_same_bits_ties_to_even():
    halves = np.sort(FINITE.astype(np.float64))
    middles = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)
    values = [FINITE.astype(np.float32), middles, np.array([65520, -65520, 1e38, 1e-45, -1e-45], np.float32)]
    for direction in (np.inf, -np.inf):
        values += [np.nextafter(value, np.float32(direction)) for value in values[:3]]
    together = np.concatenate(values)
    assert len(together) > 300_000
    ours, theirs = cast_both_ways(together, np.float16)
    assert ours.tobytes() == theirs.tobytes()
    even = cast_both_ways(middles, np.float16)[0].view(np.uint16) % 2 == 0
    assert even[middles != 0].all()


@pytest.mark.parametrize("scale", [1e-40, 1e-9, 1e-7, 1e-5, 1e-2, 1.0, 1e4])
def test_random_values_are_rounded_to_the_same_bits(scale):
    values = (np.random.default_rng(0).uniform(-6, 6, 200_000) * scale).astype(np.float32)
    ours, theirs = cast_both_ways(values, np.float16)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("count", [0, 1, 7, 1023, 2**20 + 1])
def test_any_number_of_values(count):
    values = np.random.default_rng(0).normal(size=count).astype(np.float32)
    ours, theirs = cast_both_ways(values, np.float16)
    assert ours.tobytes() == theirs.tobytes()


def test_double_precision_is_rounded_once():
    values = np.array([1 + 2**-11 + 2**-40])  # in single precision it would be a tie
    ours, _ = cast_both_ways(values, np.float16)
    assert ours[0] == np.float16(1 + 2**-10)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_what_is_not_finite_is_seen(value, dtype):
    assert not are_finite(np.array([1, value, -3], dtype))
    assert not are_finite(np.array([value], dtype))


def test_finite_values_are_finite():
    assert are_finite(FINITE)
    assert are_finite(FINITE.astype(np.float32))
    assert are_finite(np.empty(0, np.float16))
    assert [bool(are_finite(EVERY_HALF[i : i + 1])) for i in range(2**16)] == np.isfinite(EVERY_HALF).tolist()


def test_a_merge_imports_no_torch():
    script = "import sys, stages.checkpoints.merging.models, stages.checkpoints.single_file; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
