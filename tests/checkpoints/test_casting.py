import subprocess
import sys

import numpy as np
import pytest
import torch

from stages.checkpoints.casting import TORCH_PAYS, are_finite, cast_in_numpy, cast_in_torch, quickest_cast

EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = EVERY_HALF[np.isfinite(EVERY_HALF)]


def cast_both_ways(values, dtype):
    """What numpy and torch make of values."""
    results = [np.empty(len(values), dtype) for _ in range(2)]
    with np.errstate(over="ignore"):
        cast_in_numpy(values, results[0])
    cast_in_torch(values, results[1])
    return results


def test_every_half_is_widened_to_the_same_bits():
    ours, theirs = cast_both_ways(FINITE, np.float32)
    assert ours.tobytes() == theirs.tobytes() == FINITE.astype(np.float32).tobytes()


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
    even = cast_both_ways(middles, np.float16)[1].view(np.uint16) % 2 == 0
    assert even[middles != 0].all()


@pytest.mark.parametrize("scale", [1e-40, 1e-9, 1e-7, 1e-5, 1e-2, 1.0, 1e4])
def test_random_values_are_rounded_to_the_same_bits(scale):
    values = (np.random.default_rng(0).uniform(-6, 6, 200_000) * scale).astype(np.float32)
    ours, theirs = cast_both_ways(values, np.float16)
    assert ours.tobytes() == theirs.tobytes()


def test_torch_with_several_threads_gives_the_same_bits():
    values = np.random.default_rng(0).normal(size=2**20).astype(np.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        ours, theirs = cast_both_ways(values, np.float16)
    finally:
        torch.set_num_threads(threads)
    assert ours.tobytes() == theirs.tobytes()


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


def test_torch_has_its_threads_back_afterwards():
    threads = torch.get_num_threads()
    with quickest_cast(1) as cast:
        assert (cast, torch.get_num_threads()) == (cast_in_torch, 1)
    assert torch.get_num_threads() == threads


def test_torch_is_imported_for_much_data_only():
    counts = {TORCH_PAYS - 1: "cast_in_numpy", TORCH_PAYS: "cast_in_torch"}
    for count, name in counts.items():
        script = f"from stages.checkpoints.casting import *\nwith quickest_cast({count}) as cast: print(cast.__name__)"
        assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == f"{name}\n"
