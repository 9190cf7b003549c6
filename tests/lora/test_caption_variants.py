"""Captions as training sees them."""

from collections import Counter
from typing import Any

import pytest
import torch

from stages.lora.caption_variants import caption_at, variants_of, varies
from stages.lora.config import Text2imgConfig
from tests.lora.settings import conf_values

CAPTION = "asuka, glasses, smile, red dress, outdoors"


def config_of(**changes: Any) -> Text2imgConfig:
    return Text2imgConfig(**conf_values("train_text2img", **changes))


def texts(config: Text2imgConfig, epochs: int, caption: str = CAPTION, name: str = "1.png", seed: int = 0) -> list[str]:
    return [caption_at(caption, config, seed, epoch, name) for epoch in range(epochs)]


def test_without_settings_a_caption_stays_as_it_is_written():
    odd = "asuka ,glasses,, a. b"
    assert texts(config_of(), 3, odd) == [odd] * 3
    assert not varies(config_of(), [odd])


def test_tags_are_shuffled_and_the_first_stay():
    drawn = texts(config_of(shuffle_caption=True, keep_tokens=2), 60)
    assert {text[:14] for text in drawn} == {"asuka, glasses"}
    assert {frozenset(text.split(", ")) for text in drawn} == {frozenset(CAPTION.split(", "))}
    assert len(set(drawn)) == 6, "three tags in every order"


def test_tags_are_left_out_one_by_one_and_never_those_that_are_kept():
    drawn = texts(config_of(caption_tag_dropout=0.25, keep_tokens=1), 2000)
    counts = Counter(tag for text in drawn for tag in text.split(", "))
    assert counts["asuka"] == 2000
    assert all(1440 < counts[tag] < 1560 for tag in ("glasses", "smile", "red dress", "outdoors"))
    assert all([tag for tag in CAPTION.split(", ") if tag in text.split(", ")] == text.split(", ") for text in drawn)


def test_shuffling_changes_nothing_of_what_is_left_out():
    settings = {"caption_tag_dropout": 0.5, "keep_tokens": 0}
    plain, shuffled = (texts(config_of(**settings, shuffle_caption=each), 50) for each in (False, True))
    assert [sorted(text.split(", ")) for text in plain] == [sorted(text.split(", ")) for text in shuffled]


def test_whole_captions_are_left_out_by_epoch():
    drawn = texts(config_of(caption_dropout_every_n_epochs=3), 7)
    assert [text == "" for text in drawn] == [False, False, True, False, False, True, False]


def test_a_choice_is_drawn_before_its_tags_are():
    drawn = texts(config_of(shuffle_caption=True), 200, "asuka, {red, blue|green}")
    assert Counter(len(text.split(", ")) for text in drawn).keys() == {2, 3}


def test_a_caption_depends_on_seed_epoch_and_name_alone():
    config = config_of(shuffle_caption=True, keep_tokens=0)
    assert texts(config, 20) == texts(config, 20)
    assert texts(config, 20) != texts(config, 20, seed=1)
    assert texts(config, 20) != texts(config, 20, name="2.png")
    longer = config_of(shuffle_caption=True, keep_tokens=0, max_train_steps=3000)
    assert texts(config, 20) == texts(longer, 20)


def test_all_texts_of_a_run_are_known_before():
    config = config_of(shuffle_caption=True, max_train_steps=10, train_batch_size=2)
    captions = {"1.png": CAPTION, "2.png": "asuka", "3.png": "a, b"}
    variants = variants_of(captions, config, seed=0)
    assert variants.texts[0] == "" and len(set(variants.texts)) == len(variants.texts)
    assert len(variants.numbers) >= 10 * 2 / 3
    for epoch, row in enumerate(variants.numbers.tolist()):
        assert [variants.texts[number] for number in row] == [
            caption_at(caption, config, 0, epoch, name) for name, caption in captions.items()
        ]
    assert variants.numbers.dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "caption"),
    [
        ({"shuffle_caption": True}, "a"),
        ({"caption_tag_dropout": 0.1}, "a"),
        ({"caption_dropout_every_n_epochs": 2}, "a"),
        ({}, "{a|b}"),
    ],
)
def test_what_makes_captions_vary(changes, caption):
    assert varies(config_of(**changes), [caption])
