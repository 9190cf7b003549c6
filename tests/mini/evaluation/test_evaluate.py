import argparse

import pytest

from stages.mini.evaluation.evaluate import SECTIONS, _kept_apart, _sections, asked_hair
from stages.mini.evaluation.targets import PIXEL_ART_TARGETS, TARGETS


def test_every_target_belongs_to_a_section():
    assert {target.section for target in TARGETS + PIXEL_ART_TARGETS} <= set(SECTIONS)
    assert _sections("vae,loras") == ["vae", "loras"]
    with pytest.raises(argparse.ArgumentTypeError, match="known are"):
        _sections("vae,sound")


@pytest.mark.parametrize(
    ("prompt", "colour"),
    [
        ("a portrait, blond hair, blue background", "blond"),
        ("anime portrait, black short hair, pink background", "black"),
        ("anime portrait, brown hair, glasses, yellow background", "brown"),
        ("a portrait, red twin tails hair", "red"),
        ("a portrait, long hair, blue background", ""),
        ("a portrait, gray background", ""),
        ("a portrait", ""),
    ],
)
def test_the_hair_that_a_prompt_asks_for_is_named_in_the_phrase_of_the_hair(prompt, colour):
    assert asked_hair(prompt) == colour


def test_images_that_do_not_name_the_subject_are_counted_apart():
    """Four images, the first of which names her: her features, pixel art and the asked hair are looked for in the others."""
    cells = [{"prompt": text} for text in ("asuka, red hair", "a portrait, blond hair", "a portrait", "a portrait, black hair")]
    judged = {
        "hair": ["twin tails", "twin tails", "twin tails", "short"],
        "hair_color": ["red", "blond", "red", "red"],
        "style": ["pixel-art", "pixel-art", "micah", "micah"],
    }
    assert _kept_apart(judged, cells, [1, 2, 3]) == {
        "leak": 0.3333,
        "pixel_art_leak": 0.3333,
        "hair_asked": 2,
        "hair_as_asked": 0.5,
    }
    assert _kept_apart(judged, cells, [2]) == {"leak": 1.0, "pixel_art_leak": 0.0}, "no hair was asked for"
