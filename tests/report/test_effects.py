import pytest

from stages.report.effects import EFFECTS, effect_of
from stages.report.scores import METRICS, Interval

HIGHER, LOWER, OPEN, ONE_SEED = (
    Interval(0.2, 0.1, 0.3),
    Interval(-0.2, -0.3, -0.1),
    Interval(0, -1, 1),
    Interval(0.2, None, None),
)


@pytest.mark.parametrize(
    ("metric", "asked", "higher", "lower"),
    [
        ("reference_similarity", True, "good", "harm"),
        ("prompt_similarity", True, "good", "harm"),
        ("reference_similarity", False, "harm", "no harm"),
        ("prompt_similarity", False, "good", "harm"),
    ],
)
def test_direction_that_is_wanted(metric, asked, higher, lower):
    effect = effect_of(metric, asked)
    assert (effect.verdict(HIGHER), effect.verdict(LOWER)) == (higher, lower)
    assert effect.verdict(OPEN) == effect.verdict(ONE_SEED) == "not told apart"


def test_every_score_has_a_direction_on_both_kinds_of_prompts():
    assert {(effect.metric, effect.asked) for effect in EFFECTS} == {
        (metric, asked) for metric in METRICS for asked in (True, False)
    }
    assert len({effect.key for effect in EFFECTS}) == len(EFFECTS)
    assert len({effect.name for effect in EFFECTS}) == len(EFFECTS)


def test_words_claim_nothing_that_the_seeds_do_not_show():
    leak, fidelity = effect_of("reference_similarity", False), effect_of("prompt_similarity", True)
    assert leak.words(HIGHER) == "clearly higher: harm, it leaks"
    assert leak.words(LOWER) == "clearly lower: no harm"
    assert fidelity.words(HIGHER) == "clearly higher: good"
    assert fidelity.words(LOWER) == "clearly lower: harm"
    assert fidelity.words(OPEN) == "not told apart from 0 by these seeds"
    assert fidelity.words(ONE_SEED) == ""
