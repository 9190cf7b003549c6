from dataclasses import replace

import numpy as np
import pytest

from stages.checkpoints.merging.methods import (
    MERGE_METHODS,
    TensorSettings,
    add_difference,
    dare,
    keep_mask,
    smallest_kept,
    trim,
    weighted_sum,
)

THETA0 = np.array([[0, 4], [8, -4]], np.float32)
THETA1 = np.array([[4, 4], [0, 4]], np.float32)
THETA2 = np.array([[1, 1], [0, 0]], np.float32)


def normal(seed, size=1000):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def merge(name, *thetas, alpha=0.3, density=0.5, **settings):
    """A method applied to whole tensors."""
    method, settings = MERGE_METHODS[name], TensorSettings("x", alpha, density, 0, **settings)
    measured = method.measure(settings, lambda: iter([thetas])) if method.measure else ()
    return method.function(*thetas, replace(settings, measured=measured))


def test_weighted_sum_of_two_by_two():
    assert weighted_sum(THETA0, THETA1, 0.25).tolist() == [[1, 4], [6, -2]]


def test_add_difference_of_two_by_two():
    assert add_difference(THETA0, THETA1, THETA2, 0.5).tolist() == [[1.5, 5.5], [8, -2]]


def test_slerp_halfway_between_axes_keeps_the_length():
    halfway = merge("slerp", np.array([2, 0], np.float32), np.array([0, 2], np.float32), alpha=0.5)
    np.testing.assert_allclose(halfway, [2**0.5, 2**0.5], rtol=1e-6)


@pytest.mark.parametrize(("alpha", "end"), [(0, 0), (1, 1)])
def test_slerp_ends_at_the_models(alpha, end):
    thetas = normal(0), normal(1)
    np.testing.assert_allclose(merge("slerp", *thetas, alpha=alpha), thetas[end], rtol=1e-6)


@pytest.mark.parametrize("theta1", [THETA0, -THETA0, np.zeros_like(THETA0)])
def test_slerp_without_an_arc_is_the_line(theta1):
    assert np.array_equal(merge("slerp", THETA0, theta1, alpha=0.25), weighted_sum(THETA0, theta1, 0.25))


def test_trim_keeps_the_largest():
    difference, nothing = np.array([[1, -3], [0.5, 2]], np.float32), np.zeros((2, 2), np.float32)
    smallest = smallest_kept(lambda: iter([(difference, nothing, nothing)]), 0.5)
    assert smallest == (2, 0)
    assert trim(difference, smallest[0]).tolist() == [[0, -3], [0, 2]]


def test_ties_by_hand():
    theta2 = np.array([0, 0, 0, 0, 1], np.float32)
    theta0 = np.array([4, -1, 3, 2, 1], np.float32)  # differences 4, -1, 3, 2, 0: the 2 is trimmed to 0.6 * 5 = 3 values
    theta1 = np.array([2, 3, -4, 1, 1], np.float32)  # differences 2, 3, -4, 1, 0
    merged = merge("ties", theta0, theta1, theta2, alpha=0.5, density=0.6)
    # 4 and 2 agree; the trimmed -1 leaves 3; 3 and -4 elect minus; the trimmed 1 leaves 2; nothing was learnt of the last.
    assert merged.tolist() == [3, 3, -4, 2, 1]


def test_ties_with_one_weight_zero_is_the_other_model_trimmed():
    thetas = normal(0), normal(1), normal(2)
    merged = merge("ties", *thetas, alpha=1.0, density=0.3)
    smallest = smallest_kept(lambda: iter([thetas]), 0.3)[1]
    np.testing.assert_array_equal(merged, thetas[2] + trim(thetas[1] - thetas[2], smallest))


def test_dare_of_everything_is_the_weighted_sum():
    setting = TensorSettings("unet.conv_in.weight", 0.25, 1.0, 0)
    np.testing.assert_allclose(dare(THETA0, THETA1, THETA2, setting), weighted_sum(THETA0, THETA1, 0.25), rtol=1e-6)


def test_dare_drops_and_rescales():
    theta2 = np.zeros(100_000, np.float32)
    setting = TensorSettings("x", 0.0, 0.1, 3)
    merged = dare(np.ones_like(theta2), theta2, theta2, setting)
    assert set(np.unique(merged)) == {np.float32(0), np.float32(10)}
    assert abs(merged.mean() - 1) < 0.05


def test_masks_depend_on_the_key_the_seed_and_the_model_alone():
    masks = [
        keep_mask((50, 20), TensorSettings(key, 0.5, 0.5, seed), index) for key in "ab" for seed in (0, 1) for index in (0, 1)
    ]
    again = keep_mask((50, 20), TensorSettings("a", 0.9, 0.5, 0), 0)
    assert np.array_equal(masks[0], again)
    assert len({mask.tobytes() for mask in masks}) == 8


@pytest.mark.parametrize("name", MERGE_METHODS)
@pytest.mark.parametrize("size", [7, 8, 1000])
def test_pieces_are_merged_as_the_whole_is(name, size):
    method, settings = MERGE_METHODS[name], TensorSettings("x", 0.3, 0.5, 0)
    thetas = [normal(seed, size) for seed in range(method.models)]
    cuts = [slice(start, start + 16) for start in range(0, size, 16)]
    if method.measure:
        measured = method.measure(settings, lambda: (tuple(theta[cut] for theta in thetas) for cut in cuts))
        settings = replace(settings, measured=measured)
    pieces = [method.function(*(theta[cut] for theta in thetas), replace(settings, start=cut.start)) for cut in cuts]
    np.testing.assert_array_max_ulp(np.concatenate(pieces), merge(name, *thetas), 4 if name == "slerp" else 0)


@pytest.mark.parametrize("name", MERGE_METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_in_a_model_is_not_finite_in_the_merge(name, value):
    method = MERGE_METHODS[name]
    for broken in range(method.models):
        thetas = [normal(seed) for seed in range(method.models)]
        thetas[broken][500] = value
        with np.errstate(all="ignore"):
            assert not np.isfinite(merge(name, *thetas, density=0.1)).all()


@pytest.mark.parametrize("name", MERGE_METHODS)
def test_every_method_has_a_source_and_gives_float32_without_changing_its_input(name):
    method = MERGE_METHODS[name]
    assert method.source
    assert method.formula.startswith("theta = ")
    thetas = [normal(seed) for seed in range(method.models)]
    merged = merge(name, *thetas)
    assert merged.dtype == np.float32
    assert all(np.array_equal(theta, normal(seed)) for seed, theta in enumerate(thetas))
    overwritten = merge(name, *thetas, overwrite=True)
    assert np.array_equal(overwritten, merged)
