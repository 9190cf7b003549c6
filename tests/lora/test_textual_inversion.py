"""What a word is trained on."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from stages.encoding.encoded_files import EncodedImages
from stages.encoding.words import TEMPLATES, NewWord
from stages.lora.batches import Draws, batch_at, held_out_batches
from stages.lora.config import TextualInversionConfig
from stages.lora.textual_inversion import textual_inversion_streams, word_of
from tests.lora.settings import conf_values, noise_config

WORD = NewWord("<asuka>", "asuka", "a", 2)
NAMES = ["1.png", "2.png", "3.png"]
IMAGES = EncodedImages(NAMES, torch.zeros(3, 2, 4, 4, 4), torch.ones(3, 2, 4, 4, 4), 1.0, 32)
DRAWS = Draws(0, 1000, False, noise_config())


def config_of(**changes: Any) -> TextualInversionConfig:
    known = {"placeholder_token": "<asuka>", "replaces": "asuka", "clip_skip": 0}
    return TextualInversionConfig(**conf_values("train_textual_inversion", **known | changes))


def numbers(streams, batches: int) -> list[int]:
    found = []
    for number in range(batches):
        batch: Any = batch_at(streams, DRAWS, 3, number)
        found += batch.encoder_hidden_states.tolist()
    return found


def test_each_image_has_any_of_the_templates_by_chance_and_always_the_same_at_one_place():
    config = config_of(templates="style", max_train_steps=400)
    streams, held_out, prompts = textual_inversion_streams(IMAGES, {}, config, WORD, 0)
    again, _, _ = textual_inversion_streams(IMAGES, {}, config, WORD, 0)
    other, _, _ = textual_inversion_streams(IMAGES, {}, config, WORD, 1)
    assert held_out is None
    assert sorted(prompts) == sorted(text.replace("{}", "<asuka>") for text in TEMPLATES["style"])
    drawn = numbers(streams, 400)
    assert drawn == numbers(again, 400) != numbers(other, 400)
    counts = Counter(drawn)
    assert set(counts) == set(range(17))
    assert max(counts.values()) < 2 * min(counts.values())


def test_another_image_leaves_the_texts_of_the_others_as_they_were():
    fewer = replace(IMAGES, file_names=NAMES[1:], mean=IMAGES.mean[1:], std=IMAGES.std[1:])
    found = []
    for images in (IMAGES, fewer):
        streams, _, prompts = textual_inversion_streams(images, {}, config_of(max_train_steps=9), WORD, 0)
        choices = streams[0].examples.choices
        assert choices is not None
        found.append([prompts[number] for number in choices[:5, images.file_names.index("3.png")]])
    assert found[0] == found[1]


def test_captions_name_the_word_in_the_place_of_what_it_replaces_or_before_all():
    captions = dict(zip(NAMES, ["asuka, glasses", "a portrait", ""], strict=True))
    streams, _, prompts = textual_inversion_streams(IMAGES, captions, config_of(templates="captions"), WORD, 0)
    assert prompts == ["<asuka>, glasses", "<asuka>, a portrait", "<asuka>"]
    assert streams[0].examples.choices is not None and streams[0].examples.choices[0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"3\.png has no caption"):
        textual_inversion_streams(IMAGES, dict.fromkeys(NAMES[:2], "a"), config_of(templates="captions"), WORD, 0)


def test_held_out_images_keep_their_captions():
    images = replace(IMAGES, held_out=["2.png"])
    captions = dict(zip(NAMES, ["one", "two", "three"], strict=True))
    streams, held_out, prompts = textual_inversion_streams(images, captions, config_of(templates="captions"), WORD, 0)
    assert held_out is not None
    (batch,) = {tuple(each.encoder_hidden_states.tolist()) for each in held_out_batches(held_out, DRAWS, 1)}
    assert [prompts[number] for number in batch] == ["<asuka>, two"]
    assert {prompts[number] for number in numbers(streams, 5)} == {"<asuka>, one", "<asuka>, three"}


def test_noise_and_timesteps_are_those_of_a_training_with_one_prompt_an_image():
    by_templates, _, _ = textual_inversion_streams(IMAGES, {}, config_of(), WORD, 0)
    by_captions, _, _ = textual_inversion_streams(IMAGES, dict.fromkeys(NAMES, "a"), config_of(templates="captions"), WORD, 0)
    one: Any = batch_at(by_templates, DRAWS, 2, 5)
    two: Any = batch_at(by_captions, DRAWS, 2, 5)
    assert torch.equal(one.noise, two.noise) and torch.equal(one.timesteps, two.timesteps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuned": "full"}, "tuned: given 'full'"),
        ({"templates": ["a portrait"]}, "templates"),
        ({"templates": ["{} {}"]}, "templates"),
        ({"templates": []}, "templates: given none"),
        ({"prior_loss_weight": 1.0}, "prior_loss_weight: given 1"),
        ({"embedding_learning_rate": 0.1}, "embedding_learning_rate: only with tuned=lora"),
        ({"train_text_encoder": True}, "train_text_encoder: given True"),
        ({"placeholder_token": "two words"}, "placeholder_token"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


def test_no_word_is_said():
    with pytest.raises(ValueError, match="placeholder_token: is null"):
        word_of(config_of(placeholder_token=None), 1)


def test_settings_of_a_lora_are_told_only_where_there_is_one():
    assert "rank" not in config_of().of_weights and "lora_alpha" not in config_of().of_weights
    assert {"rank", "lora_alpha", "initializer"} <= set(config_of(tuned="lora").of_weights)
