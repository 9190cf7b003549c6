import pytest

from stages.measures.comparing import MEASURES
from stages.pipeline.ci.comment import changes


def test_measures_themselves_have_no_better_or_worse():
    old, new = {"a": {"subject_fidelity": 0.5, "x_gain": 1}}, {"a": {"subject_fidelity": 0.25, "y": 2}}
    assert list(changes(old, new)) == [
        ("a", "subject_fidelity", "0.5000", "0.2500", "-0.2500", ""),
        ("a", "x_gain", "1.0000", "", "", "gone"),
        ("a", "y", "", "2.0000", "", "new"),
    ]
    assert list(changes(new, new)) == []


UP = {
    "trigger_specificity": "for the better",
    "subject_fidelity": "for the better",
    "subject_fidelity_clip": "for the better",
    "leak": "for the worse",
    "prompt_alignment": "for the better",
    "prompt_alignment_other": "for the better",
    "drift": "for the worse",
    "diversity": "for the better",
    "diversity_other": "for the better",
    "copying": "for the worse",
}


@pytest.mark.parametrize("measure", MEASURES, ids=[measure.key for measure in MEASURES])
def test_more_of_what_a_lora_changed_is_called_by_what_is_wanted_of_it(measure):
    name, other = f"{measure.key}_gain", {"for the better": "for the worse", "for the worse": "for the better"}
    assert list(changes({"a": {name: 0.0}}, {"a": {name: 0.25}})) == [
        ("a", name, "0.0000", "0.2500", "+0.2500", UP[measure.key])
    ]
    assert list(changes({"a": {name: 0.25}}, {"a": {name: 0.0}})) == [
        ("a", name, "0.2500", "0.0000", "-0.2500", other[UP[measure.key]])
    ]


def test_a_gain_of_what_is_no_measure_has_no_direction():
    ((*_, direction),) = changes({"a": {"prompt_similarity_gain": 0.0}}, {"a": {"prompt_similarity_gain": 1.0}})
    assert direction == ""
