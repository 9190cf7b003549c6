import math

import numpy as np
import pytest

from stages.measures.comparing import BY_KEY, MEASURES, Declared, applies, compare, estimate, select
from stages.measures.measuring import METRICS

ASKS = np.array([True, True, True, False, False, False])
SEEDS = 4
SPECIFICITY, FIDELITY, LEAK = BY_KEY["trigger_specificity"], BY_KEY["subject_fidelity"], BY_KEY["leak"]


def arm(generator, trainings: int = 1, prompts: int = 6, **shifts: float):
    """An arm whose metrics hang together, with what is added to some of them."""
    shared = generator.normal(size=(trainings, prompts))
    return {metric: 0.7 * shared + generator.normal(size=(trainings, prompts)) + shifts.get(metric, 0.0) for metric in METRICS}


def same(values: float):
    return {metric: np.full((1, 6), values) for metric in METRICS}


def test_measures_are_taken_on_their_prompts():
    values = np.array([[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]])
    assert estimate(FIDELITY, values, ASKS).mean == 2
    assert estimate(LEAK, values, ASKS).mean == 20
    assert estimate(SPECIFICITY, values, ASKS).mean == -18


def test_units_are_prompts_of_one_training_and_trainings_where_there_are_several():
    values = np.array([[1.0, 2.0, 3.0, 0, 0, 0], [3.0, 4.0, 5.0, 0, 0, 0], [5.0, 6.0, 7.0, 0, 0, 0]])
    one, several = estimate(FIDELITY, values[:1], ASKS), estimate(FIDELITY, values, ASKS)
    assert (one.units, several.units) == (3, 3)
    assert (one.low, one.high) == pytest.approx((2 - 4.30265273 / 3**0.5, 2 + 4.30265273 / 3**0.5))
    assert (several.mean, several.high) == pytest.approx((4, 4 + 4.30265273 * 2 / 3**0.5))
    both = estimate(SPECIFICITY, values, ASKS)
    assert (both.mean, both.units) == (4, 3)


def test_what_the_prompts_share_is_no_difference():
    """Prompts differ by thousands, two arms by one tenth: paired by prompt, that is plain."""
    prompts = np.array([[0.0, 1000.0, 2000.0, 3000.0, 4000.0, 5000.0]])
    one, other = (dict.fromkeys(METRICS, prompts + shift) for shift in (0.1, 0.0))
    (contrast,) = [
        each
        for each in compare([Declared(("a", "b"), (one, other))], ASKS, SEEDS, "subject_fidelity")
        if each.measure is FIDELITY
    ]
    assert contrast.interval.mean == pytest.approx(0.1)
    assert contrast.verdict == "better"


@pytest.mark.parametrize(("key", "more"), [(measure.key, measure.wanted) for measure in MEASURES])
def test_more_is_better_or_worse_as_the_measure_says(key, more):
    measure = BY_KEY[key]
    values = np.where(ASKS, 0.2, 0.1)[None] if measure.asked == "both" else np.full((1, 6), 0.2)
    contrasts = compare([Declared(("a", "b"), (dict.fromkeys(METRICS, values), same(0.0)))], ASKS, SEEDS, key)
    (found,) = [each for each in contrasts if each.measure is measure]
    assert found.primary
    assert found.verdict == ("better" if more > 0 else "worse")


def test_arms_without_a_difference_are_told_apart_in_one_of_twenty_before_and_no_more_in_all_together_after():
    generator = np.random.default_rng(11)
    before, after = [], []
    for _ in range(1000):
        one, other, third = (arm(generator, prompts=12) for _ in range(3))
        declared = [Declared(("a", "b"), (one, other)), Declared(("a", "c"), (one, third))]
        contrasts = compare(declared, np.arange(12) < 6, SEEDS, "trigger_specificity")
        before.append((contrasts[3].interval.p or 0) <= 0.05)
        after.append(any(contrast.told_apart for contrast in contrasts))
    assert 0.03 <= np.mean(before) <= 0.07
    assert np.mean(after) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_several_trainings_without_a_difference_are_told_apart_no_more_often():
    generator = np.random.default_rng(12)
    found = []
    for _ in range(500):
        one, other = arm(generator, trainings=5), arm(generator, trainings=5)
        contrasts = compare([Declared(("a", "b"), (one, other))], ASKS, SEEDS, "trigger_specificity")
        found.append(any(contrast.told_apart for contrast in contrasts))
    assert np.mean(found) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 500)


def test_the_primary_keeps_its_power_however_many_others_are_asked():
    """A difference that its own test finds at half of the level is found among hundreds of comparisons."""
    generator = np.random.default_rng(13)
    one, other = arm(generator, prompts=12, dino_similarity=3.0), arm(generator, prompts=12)
    asks = np.arange(12) < 6
    many = [Declared((f"x{number}", "y"), (arm(generator, prompts=12), arm(generator, prompts=12))) for number in range(40)]
    contrasts = compare([Declared(("a", "b"), (one, other)), *many], asks, SEEDS, "subject_fidelity")
    (primary,) = [each for each in contrasts if each.primary]
    assert primary.measure is FIDELITY
    assert primary.adjusted_p == pytest.approx(min(1.0, 2 * (primary.interval.p or 0)), rel=0.01)


def test_a_merge_of_one_is_compared_with_each_training():
    generator = np.random.default_rng(2)
    trainings, merge = arm(generator, trainings=3), arm(generator)
    (found,) = [
        each
        for each in compare([Declared(("a", "merge"), (trainings, merge))], ASKS, SEEDS, "subject_fidelity")
        if each.measure is FIDELITY
    ]
    values = trainings["dino_similarity"] - merge["dino_similarity"]
    assert found.interval.mean == pytest.approx(values[:, ASKS].mean())
    assert found.interval.units == 3


def test_a_trend_is_the_slope_for_each_doubling():
    arms = [same(0.3 * place) for place in range(4)]
    declared = Declared(("r1", "r2", "r4", "r8"), arms, x=(0.0, 1.0, 2.0, 3.0))
    (found,) = [each for each in compare([declared], ASKS, SEEDS, "leak") if each.measure is FIDELITY]
    assert found.kind == "trend"
    assert found.interval.mean == pytest.approx(0.3)


def test_what_says_nothing_is_left_out():
    contrasts = compare([Declared(("a", "b"), (same(1), same(0)), without=("drift",))], ASKS, SEEDS, "leak")
    assert {each.measure.key for each in contrasts} == {measure.key for measure in MEASURES} - {"drift"}
    of_one_seed = compare([Declared(("a", "b"), (same(1), same(0)))], ASKS, 1, "leak")
    assert not {"diversity", "diversity_other"} & {each.measure.key for each in of_one_seed}
    all_ask = compare([Declared(("a", "b"), (same(1), same(0)))], np.ones(6, dtype=bool), SEEDS, "leak")
    assert {each.measure.asked for each in all_ask} == {"subject"}
    assert not applies(LEAK, np.ones(6, dtype=bool), SEEDS)


def halves_of(values):
    """The same values over either half of the seeds."""
    return (np.asarray([values], dtype=float), np.asarray([values], dtype=float))


def test_the_best_is_chosen_on_one_half_and_reported_on_the_other():
    """Prompts 0, 2 and 3, 5 choose; prompts 1 and 4 report, by other seeds."""
    candidates = {
        "modest": halves_of([0.5, 0.5, 0.5, 0.1, 0.1, 0.1]),
        "lucky": (np.array([[0.9, 0.2, 0.9, 0.1, 0.1, 0.1]]), np.array([[0.0, 0.3, 0.0, 0.0, 0.2, 0.0]])),
    }
    found = select(candidates, ASKS, SPECIFICITY)
    assert found is not None
    assert found.chosen == "lucky"
    assert found.flattering == pytest.approx(0.8)
    assert found.reported.mean == pytest.approx(0.1)


def test_the_least_is_the_best_where_less_is_wanted():
    candidates = {"a": halves_of([0.0] * 3 + [0.5] * 3), "b": halves_of([0.0] * 3 + [0.1] * 3)}
    found = select(candidates, ASKS, LEAK)
    assert found is not None
    assert found.chosen == "b"


def test_one_candidate_is_no_choice_and_few_prompts_have_no_halves():
    assert select({"a": halves_of([0.1] * 6)}, ASKS, SPECIFICITY) is None
    two = {"a": halves_of([0.1, 0.1]), "b": halves_of([0.2, 0.1])}
    assert select(two, np.array([True, False]), SPECIFICITY) is None


def test_choosing_flatters_on_its_own_half_alone():
    """Twenty arms without a difference: the best of one half is nothing special on the other."""
    generator = np.random.default_rng(7)
    flattering, reported = [], []
    for _ in range(200):
        candidates = {str(name): (generator.normal(size=(1, 12)), generator.normal(size=(1, 12))) for name in range(20)}
        found = select(candidates, np.arange(12) < 6, FIDELITY)
        assert found is not None
        flattering.append(found.flattering)
        reported.append(found.reported.mean)
    assert np.mean(flattering) > 0.5
    assert abs(np.mean(reported)) < 2 * np.std(reported) / math.sqrt(200)
