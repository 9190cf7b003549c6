"""Drawings are fixed by their seed and show what was asked for."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest

from stages.mini.drawings.portraits import (
    ATTRIBUTES,
    HAIR_COLORS,
    HELD_OUT_SEEDS,
    IMAGE_SET_SEEDS,
    STYLES,
    SUBJECT_HAIR,
    TRAIN_SEEDS,
    attribution,
    caption,
    draw,
)


@pytest.mark.parametrize("style", sorted(STYLES))
def test_same_seed_same_image_and_every_visible_attribute_resolved(style: str) -> None:
    image, attributes = draw(style, 3)
    again, same = draw(style, 3)
    other, _ = draw(style, 4)
    assert image.tobytes() == again.tobytes() and attributes == same
    assert image.tobytes() != other.tobytes()
    assert tuple(attributes) == STYLES[style].attributes
    assert all(word in ATTRIBUTES[name] for name, word in attributes.items())


@pytest.mark.parametrize("style", sorted(STYLES))
def test_asked_background_fills_the_corner(style: str) -> None:
    image, _ = draw(style, 5, {"background": "green"})
    assert image.getpixel((0, 0)) == (0x8F, 0xD6, 0x94)


@pytest.mark.parametrize("style", sorted(STYLES))
def test_asked_hair_color_is_in_the_image(style: str) -> None:
    red = np.array(tuple(bytes.fromhex(HAIR_COLORS["red"])))
    image, _ = draw(style, 6, {"hair_color": "red", "hair": "long", "background": "white"})
    distance = np.abs(np.asarray(image).astype(int) - red).max(axis=2)
    assert (distance < 12).sum() > 50


def test_twin_tails_only_when_asked_for() -> None:
    assert all(draw("adventurer", seed)[1]["hair"] != SUBJECT_HAIR for seed in range(60))
    assert draw("adventurer", 1, {"hair": SUBJECT_HAIR})[1]["hair"] == SUBJECT_HAIR


def test_unknown_words_are_refused_with_what_is_known() -> None:
    with pytest.raises(ValueError, match="known are black, brown"):
        draw("micah", 1, {"hair_color": "green"})
    with pytest.raises(ValueError, match="does not show clothes"):
        draw("adventurer", 1, {"clothes": "red"})
    with pytest.raises(ValueError, match="'cubist' is unknown"):
        draw("cubist", 1)


def test_caption_names_what_is_there() -> None:
    attributes = {
        "hair_color": "red",
        "hair": "short",
        "skin": "brown",
        "glasses": "yes",
        "earrings": "no",
        "clothes": "green",
        "background": "blue",
    }
    expected = "anime portrait, red short hair, brown skin, glasses, green shirt, blue background"
    assert caption("anime portrait", attributes) == expected
    assert caption(None, {"skin": "tan"}) == "a portrait, tan skin"
    assert caption("anime portrait", attributes, Random(0), attribute_dropout=1.0) == "anime portrait"


def test_seed_ranges_are_apart() -> None:
    ranges = sorted([TRAIN_SEEDS, HELD_OUT_SEEDS, IMAGE_SET_SEEDS], key=lambda seeds: seeds.start)
    assert all(before.stop <= after.start for before, after in pairwise(ranges))


def test_every_style_names_creator_licence_and_source() -> None:
    for style in STYLES:
        assert all(attribution(style).values())
