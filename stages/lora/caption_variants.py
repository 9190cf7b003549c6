"""Captions as training sees them: tags in another order, some of them left out, one of several, another one each epoch.

As in kohya's trainers (https://github.com/kohya-ss/sd-scripts, docs/config_README-en.md). Each is a function of the seed, the
epoch and the image's name alone (of an image that an epoch shows several times, of how often it was shown), so that all that a
run will see is known, and encoded, before it begins.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.encoding.choices import chosen, has_choices
from stages.lora.batches import seeded_number
from stages.lora.config import Text2imgConfig, TrainingConfig


@dataclass(frozen=True)
class Variants:
    """The texts of a run.

    Attributes:
        texts: each once, "" first.
        numbers: (E, N), for each time that an image is shown the number of its text.
    """

    texts: Sequence[str]
    numbers: Tensor


def varies(config: Text2imgConfig, captions: Sequence[str]) -> bool:
    """Whether any image is trained with more than one text."""
    settings = (config.shuffle_caption, config.caption_tag_dropout, config.caption_dropout_every_n_epochs)
    return any(settings) or any(map(has_choices, captions))


def variants_of(captions: Mapping[str, str], config: Text2imgConfig, seed: int, repeats: Sequence[int] = ()) -> Variants:
    """All texts that a run may see.

    Args:
        captions: by the names of the images.
        config: the run's settings.
        seed: of the run.
        repeats: how often an epoch shows each image; () where each is shown once.
    """
    numbered = {"": 0}
    showings = showings_of(config, len(captions), repeats)
    of_name = dict(zip(captions, repeats or [1] * len(captions), strict=True))
    numbers = number_texts(
        lambda time, name: caption_at(captions[name], config, seed, time, name, of_name[name]), captions, showings, numbered
    )
    return Variants(list(numbered), numbers)


def showings_of(config: TrainingConfig, images: int, repeats: Sequence[int] = ()) -> int:
    """How often any image of a run is seen at most: those of a rare shape may be ahead of the others."""
    epochs = math.ceil(config.max_train_steps * config.effective_batch_size / (sum(repeats) or images))
    return (epochs + config.train_batch_size + 1) * max(repeats, default=1)


def number_texts(text_at: Callable[[int, str], str], names: Iterable[str], showings: int, numbered: dict[str, int]) -> Tensor:
    """The numbers of the texts of images, (E, N).

    Args:
        text_at: gives the text of an image when it is shown, by how often it was shown before.
        names: of the N images.
        showings: how often an image is shown at most, E.
        numbered: each text with its number, those added that are new.
    """
    of_images = list(names)
    rows = [[numbered.setdefault(text_at(time, name), len(numbered)) for name in of_images] for time in range(showings)]
    return torch.tensor(rows)


def caption_at(caption: str, config: Text2imgConfig, seed: int, time: int, name: str, repeats: int = 1) -> str:
    """The text of an image when it is shown: where an epoch shows it once, in epoch `time`, counted from 0.

    Args:
        caption: of the image; tags stand between commas.
        config: the run's settings.
        seed: of the run.
        time: how often the image was shown before.
        name: of the image.
        repeats: how often an epoch shows it.
    """
    draw = random.Random(seeded_number(seed, "caption", time, name))
    text = chosen(caption, draw)
    every = config.caption_dropout_every_n_epochs
    if every is not None and (time // repeats + 1) % every == 0:
        return ""
    if not config.shuffle_caption and not config.caption_tag_dropout:
        return text
    tags = [tag.strip() for tag in text.split(",") if tag.strip()]
    kept, others = tags[: config.keep_tokens], tags[config.keep_tokens :]
    left_out = [draw.random() < config.caption_tag_dropout for _ in others]  # drawn for each tag, whatever its place will be
    order = list(range(len(others)))
    if config.shuffle_caption:
        draw.shuffle(order)
    return ", ".join([*kept, *(others[place] for place in order if not left_out[place])])
