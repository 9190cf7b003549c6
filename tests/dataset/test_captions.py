import pytest

from stages.dataset.captions import (
    common_phrases,
    distinct_phrases,
    drop_phrases,
    edit_captions,
    likely_tokens,
    split_phrases,
)
from tests.dataset.settings import edits


def edit(captions, **changed):
    return edit_captions(captions, edits(**changed))


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("anime portrait , red hair ,smile", ["anime portrait", "red hair", "smile"]),
        ("8 - bit illustration, t - shirt", ["8-bit illustration", "t-shirt"]),
        ("a girl ' s hat", ["a girl's hat"]),
        ("a girl with red hair.", ["a girl with red hair"]),
        (" ,, ", []),
    ],
)
def test_phrases_are_what_stands_between_commas(caption, phrases):
    assert split_phrases(caption) == phrases


def test_repeated_phrases_go_and_the_first_stays():
    assert distinct_phrases(["Red hair", "smile", "red hair", "Smile"]) == ["Red hair", "smile"]


def test_patterns_match_whole_phrases_in_any_case():
    phrases = ["red twin tails Hair", "hairy dog", "smile", "[x]"]
    assert drop_phrases(phrases, ["*hair"]) == ["hairy dog", "smile", "[x]"]
    assert drop_phrases(phrases, ["*HAIR*", "smil?"]) == ["[x]"]
    assert drop_phrases(phrases, []) == phrases


def test_common_phrases_count_captions_not_occurrences():
    captions = [["a", "a", "b"], ["A", "c"], ["a", "b"], ["d"]]
    assert common_phrases(captions, 1.0) == set()
    assert common_phrases(captions, 0.75) == {"a"}
    assert common_phrases(captions, 0.5) == {"a", "b"}


def test_constant_features_are_left_to_the_trigger_word():
    written = ["portrait, red hair, smile", "portrait, red hair, frown"]
    assert edit(written, prefix="asuka", drop_phrases=["*hair*"]) == ["asuka, portrait, smile", "asuka, portrait, frown"]
    assert edit(written, prefix="asuka", drop_common_phrases=1.0) == ["asuka, smile", "asuka, frown"]


def test_prefix_and_suffix_are_neither_dropped_nor_doubled():
    assert (
        edit(["red hair, asuka", "smile"], prefix="asuka", drop_phrases=["asuka"], drop_common_phrases=0.5, suffix="a, b")
        == ["asuka, a, b"] * 2
    )
    assert edit(["x, 8-bit illustration"], suffix="8-bit illustration") == ["x, 8-bit illustration"]


def test_without_edits_only_spacing_changes_and_a_sentence_stays_whole():
    assert edit(["a girl with red hair  and a hat", ""]) == ["a girl with red hair and a hat", ""]
    assert edit(["a girl with red hair"], drop_phrases=["*hair*"]) == [""]


def test_token_guess_counts_words_marks_and_both_ends():
    assert likely_tokens("asuka, smile") == 5
