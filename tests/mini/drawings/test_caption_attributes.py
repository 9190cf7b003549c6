from random import Random

import pytest

from stages.mini.drawings.caption_attributes import attributes_named, changed, varied, words_of
from stages.mini.drawings.portraits import ATTRIBUTES, STYLES, caption

WORDS = {
    "hair_color": "red",
    "hair": "long",
    "skin": "tan",
    "expression": "smiling",
    "glasses": "yes",
    "earrings": "yes",
    "clothes": "blue",
    "background": "blue",
}


@pytest.mark.parametrize("style", STYLES)
def test_a_caption_is_read_as_it_was_written(style):
    assert attributes_named(caption(STYLES[style].caption, WORDS)) == {"style": style, **WORDS}


def test_the_spaces_that_word_pieces_leave_around_a_hyphen_do_not_matter():
    assert attributes_named("8 - bit illustration, white twin tails hair")["style"] == "pixel-art"
    assert attributes_named("a portrait, white twin tails hair")["hair"] == "twin tails"


def test_what_a_caption_does_not_say_is_not_named():
    assert attributes_named("a portrait, red hair") == {"hair_color": "red", "glasses": "no", "earrings": "no"}


@pytest.mark.parametrize("seed", range(20))
def test_a_near_miss_differs_in_one_word_that_the_style_can_draw(seed):
    attributes = {name: words_of("micah", name)[0] for name in STYLES["micah"].attributes}
    other = changed("micah", attributes, Random(seed))
    different = [name for name in attributes if attributes[name] != other[name]]
    assert len(different) == 1
    assert other[different[0]] in words_of("micah", different[0])


def test_a_near_miss_can_be_asked_for():
    assert changed("adventurer", {"skin": "tan", "hair": "long"}, Random(0), ["hair"]) == {"skin": "tan", "hair": "short"}


def test_varied_captions_are_mostly_whole_and_never_empty():
    parts = [varied("adventurer", WORDS, Random(seed)) for seed in range(300)]
    assert 0.6 < sum(kept == WORDS for _, kept in parts) / len(parts) < 0.95
    assert all(kept for _, kept in parts)
    assert {name for name, _ in parts} == {"anime portrait", None}


def test_no_style_but_the_subject_has_twin_tails():
    assert words_of("adventurer", "hair") == ATTRIBUTES["hair"]
