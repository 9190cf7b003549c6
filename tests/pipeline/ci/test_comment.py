from stages.pipeline.ci.comment import changes


def test_means_have_no_better_or_worse():
    old, new = {"a": {"reference_similarity": 0.5, "x_gain": 1}}, {"a": {"reference_similarity": 0.25, "y": 2}}
    assert list(changes(old, new)) == [
        ("a", "reference_similarity", "0.5000", "0.2500", "-0.2500", ""),
        ("a", "x_gain", "1.0000", "", "", "gone"),
        ("a", "y", "", "2.0000", "", "new"),
    ]
    assert list(changes(new, new)) == []


def test_a_fall_of_likeness_to_the_prompt_is_for_the_worse():
    rows = list(changes({"a": {"prompt_similarity_drift": 0.0}}, {"a": {"prompt_similarity_drift": -0.2}}))
    assert rows == [("a", "prompt_similarity_drift", "0.0000", "-0.2000", "-0.2000", "for the worse")]
