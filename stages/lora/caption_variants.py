"""Captions as training sees them: tags in another order, some of them left out, one of several, another one each epoch.

As in kohya's trainers (https://github.com/kohya-ss/sd-scripts, docs/config_README-en.md). Each is a function of the seed, the
epoch and the image's name alone, so that all that a run will see is known, and encoded, before it begins.
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
        numbers: (E, N), for each epoch and image the number of its text.
    """

    texts: Sequence[str]
    numbers: Tensor


def varies(config: Text2imgConfig, captions: Sequence[str]) -> bool:
    """Whether any image is trained with more than one text."""
    settings = (config.shuffle_caption, config.caption_tag_dropout, config.caption_dropout_every_n_epochs)
    return any(settings) or any(map(has_choices, captions))


def variants_of(captions: Mapping[str, str], config: Text2imgConfig, seed: int) -> Variants:
    """All texts that a run may see.

    Args:
        captions: by the names of the images.
        config: the run's settings.
        seed: of the run.
    """
    numbered = {"": 0}
    epochs = epochs_of(config, len(captions))
    numbers = number_texts(
        lambda epoch, name: caption_at(captions[name], config, seed, epoch, name), captions, epochs, numbered
    )
    return Variants(list(numbered), numbers)


def epochs_of(config: TrainingConfig, images: int) -> int:
    """The most epochs in which an image of a run is seen: those of a rare shape may be ahead of the others."""
    return math.ceil(config.max_train_steps * config.effective_batch_size / images) + config.train_batch_size + 1


def number_texts(text_at: Callable[[int, str], str], names: Iterable[str], epochs: int, numbered: dict[str, int]) -> Tensor:
    """The numbers of the texts of images, (E, N).

    Args:
        text_at: gives the text of an image in an epoch.
        names: of the N images.
        epochs: how many.
        numbered: each text with its number, those added that are new.
    """
    of_images = list(names)
    rows = [[numbered.setdefault(text_at(epoch, name), len(numbered)) for name in of_images] for epoch in range(epochs)]
    return torch.tensor(rows)


def caption_at(caption: str, config: Text2imgConfig, seed: int, epoch: int, name: str) -> str:
    """The text of an image in an epoch, counted from 0.

    Args:
        caption: of the image; tags stand between commas.
        config: the run's settings.
        seed: of the run.
        epoch: in which the image is seen.
        name: of the image.
    """
    draw = random.Random(seeded_number(seed, "caption", epoch, name))
    text = chosen(caption, draw)
    every = config.caption_dropout_every_n_epochs
    if every is not None and (epoch + 1) % every == 0:
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
