import itertools
import math

import numpy as np
import pytest

from stages.measures.statistics import (
    Interval,
    area_under_curve,
    difference_of,
    holm,
    mean_of,
    sign_flip_p,
    slopes,
    student_p,
    student_quantile,
)

REPETITIONS = 1000


def covered(make, truth: float, repetitions: int = REPETITIONS) -> float:
    """How often an interval holds the truth."""
    generator = np.random.default_rng(0)
    found: list[Interval] = [make(generator) for _ in range(repetitions)]
    return float(np.mean([each.low <= truth <= each.high for each in found if each.low is not None and each.high is not None]))


@pytest.mark.parametrize("units", [3, 6, 12])
def test_the_interval_of_a_mean_covers(units):
    share = covered(lambda generator: mean_of(generator.normal(0.3, 2.0, units)), 0.3)
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize(("units", "others"), [(6, 6), (6, 12)])
def test_the_interval_of_a_difference_covers_where_the_spreads_differ(units, others):
    def make(generator):
        return difference_of(generator.normal(1.0, 1.0, units), generator.normal(0.4, 3.0, others))

    assert 0.93 <= covered(make, 0.6) <= 0.97


def test_the_interval_of_a_slope_covers():
    def make(generator):
        prompts = 0.2 * np.arange(4) + generator.normal(size=(6, 1)) + generator.normal(size=(6, 4)) / 3
        return mean_of(slopes(range(4), prompts))

    assert 0.93 <= covered(make, 0.2) <= 0.97


def test_intervals_over_trainings_cover_other_trainings():
    """Prompts that differ much, trainings that differ little: the mean over prompts is one value for each training."""

    def make(generator):
        trainings = generator.normal(0, 0.2, (5, 1)) + np.linspace(-3, 3, 6) + generator.normal(0, 0.5, (5, 6))
        return mean_of(trainings.mean(axis=1))

    assert 0.93 <= covered(make, 0.0) <= 0.97


def test_images_as_units_would_not_cover():
    """What this guards against: four seeds of six prompts are no 24 independent values."""

    def make(generator):
        return mean_of((generator.normal(size=(6, 1)) + generator.normal(size=(6, 4)) / 2).ravel())

    assert covered(make, 0.0) < 0.75


def test_students_interval_is_that_of_the_tables():
    found = mean_of([1.0, 3.0, 5.0])
    half_width = 4.30265273 * 2.0 / 3**0.5  # t of two degrees of freedom
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 3.0 - half_width, 3.0 + half_width))
    assert found.units == 3
    assert found.p == pytest.approx(0.121689, abs=1e-6), "scipy.stats.ttest_1samp([1, 3, 5], 0).pvalue"


def test_welch_is_that_of_scipy():
    found = difference_of([1.0, 2.0, 4.0, 7.0], [0.0, 1.0, 1.5])
    assert found.mean == pytest.approx(3.5 - 2.5 / 3)
    assert found.p == pytest.approx(0.135487, abs=1e-6), "scipy.stats.ttest_ind(..., equal_var=False).pvalue"


def test_one_unit_has_no_interval():
    found = mean_of([0.5])
    assert (found.mean, found.low, found.high, found.p, found.sign, found.units) == (0.5, None, None, None, 0, 1)
    assert difference_of([1.0, 2.0], [0.5]).low is None


def test_values_that_are_all_the_same():
    assert mean_of([0.25] * 3).p == 0
    assert mean_of([0.0] * 3).p == 1
    assert difference_of([0.25] * 3, [0.25] * 4).p == 1


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (7, 2.36462), (30, 2.04227), (1000, 1.96234)])
def test_students_quantile_is_that_of_the_tables(degrees, quantile):
    assert student_quantile(0.95, degrees) == pytest.approx(quantile, rel=1e-5)
    assert student_p(quantile, degrees) == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused(wrong):
    for estimate in (lambda: mean_of([0.0, 1.0, wrong]), lambda: difference_of([0.0, wrong], [1.0, 2.0])):
        with pytest.raises(ValueError, match="no finite numbers"):
            estimate()


def test_sign_flips_are_all_gone_through():
    """Of 2^3 ways, those whose sum is at least 6 away from 0 are all + and all -."""
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip_p([1.0, -1.0]) == 1.0


def test_sampled_sign_flips_are_near_those_gone_through():
    values = np.random.default_rng(3).normal(0.5, 1.0, 15)
    signs = np.array(list(itertools.product((1, -1), repeat=15)))
    exact = np.mean(np.abs(signs @ values) >= abs(values.sum()))
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.01)


def test_what_is_detectable_is_detected_four_times_in_five():
    """With the true difference that an average repetition calls detectable."""
    generator = np.random.default_rng(1)
    truth = float(np.mean([mean_of(generator.normal(0, 1, 12)).detectable or 0.0 for _ in range(200)]))
    share = np.mean([(mean_of(generator.normal(truth, 1, 12)).p or 0.0) <= 0.05 for _ in range(REPETITIONS)])
    assert 0.75 <= share <= 0.87


def test_holm_is_the_textbooks():
    """Holm 1979: times 4, 3, 2 and 1, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005], [1] * 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_weighs_and_hands_on():
    """Half of the level for the first: 0.03 / (3/6) = 0.06. Once the second is through, it has 3/5 of the level, and 0.05."""
    assert holm([0.03, 0.001, 0.5, 0.5], [3, 1, 1, 1]) == pytest.approx([0.05, 0.006, 1.0, 1.0])


def test_false_verdicts_are_as_rare_as_they_are_said_to_be():
    """Of measures that hang together, with no true difference: one test in twenty before; all together no more after."""
    generator = np.random.default_rng(5)
    before, after = [], []
    for _ in range(REPETITIONS):
        shared = generator.normal(size=(6, 1))
        values = shared * 0.7 + generator.normal(size=(6, 12))
        p_values = [mean_of(column).p or 0.0 for column in values.T]
        before.append(p_values[0] <= 0.05)
        after.append(min(holm(p_values, [11, *[1] * 11])) <= 0.05)
    assert 0.03 <= np.mean(before) <= 0.07
    assert np.mean(after) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / REPETITIONS)


def test_area_under_the_curve_counts_pairs():
    """Of 3 x 2 pairs, four are in order, one is not, and one is a tie."""
    assert area_under_curve([1.0, 2.0, 3.0], [2.0, 0.5]).mean == pytest.approx((4 + 0.5) / 6)


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.0])
def test_the_interval_of_an_area_covers(distance):
    truth = 0.5 + 0.5 * math.erf(distance / 2)

    def make(generator):
        return area_under_curve(generator.normal(distance, 1, 40), generator.normal(0, 1, 40))

    assert 0.93 <= covered(make, truth) <= 0.97


def test_an_area_of_one_has_an_interval():
    found = area_under_curve(range(40, 80), range(40))
    assert (found.mean, found.high) == (1.0, 1.0)
    assert found.low is not None
    assert 0.9 < found.low < 1
