"""What a word is trained on: images, each under texts that hold the word (Gal et al. 2022, section 4.2, arXiv:2208.01618)."""

import random
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stages.encoding.choices import chosen
from stages.encoding.encoded_files import EncodedImages
from stages.encoding.words import TEMPLATES, NewWord
from stages.lora.batches import HELD_OUT_SEED, HELD_OUT_TIMESTEPS, Stream, seeded_number
from stages.lora.caption_variants import number_texts, showings_of
from stages.lora.config import TextualInversionConfig
from stages.lora.examples import Examples, examples_of, split_held_out


def word_of(config: TextualInversionConfig, vectors: int) -> NewWord:
    """The word that the settings describe.

    Raises:
        ValueError: they name none.
    """
    if config.placeholder_token is None:
        raise ValueError("placeholder_token: is null: name the word, such as <asuka>")
    return NewWord(config.placeholder_token, config.replaces or "", config.initializer, vectors)


def textual_inversion_streams(
    images: EncodedImages, captions: Mapping[str, str], config: TextualInversionConfig, word: NewWord, seed: int
) -> tuple[list[Stream], Examples | None, list[str]]:
    """The images under the templates or under their captions; the held-out images come apart.

    Args:
        images: of the subject, or in the style.
        captions: by file name, where `config.templates` is "captions": each names the word, or begins with it then.
        config: the run's settings.
        word: that is taught.
        seed: of the run; each image has a text of its own in each epoch, which depends on it and the image's name.

    Returns:
        the stream, the held-out images, and the prompts in the order of their numbers.

    Raises:
        ValueError: an image has no caption.
    """
    without = [name for name in images.file_names if name not in captions]
    if without and config.templates == "captions":
        raise ValueError(f"{without[0]} has no caption: run caption again, or set templates to subject")
    numbered: dict[str, int] = {}

    def choices(of_seed: int, epochs: int) -> Tensor:
        def text_at(epoch: int, name: str) -> str:
            return _text(config, word, captions.get(name, ""), of_seed, epoch, name)

        return number_texts(text_at, images.file_names, epochs, numbered)

    of_training = choices(seed, showings_of(config, len(images.file_names), images.repeats))
    of_held_out = choices(HELD_OUT_SEED, HELD_OUT_TIMESTEPS)
    prompts = list(numbered)
    numbers = torch.arange(len(prompts))
    examples = examples_of(images, numbers, numbers[0], config.unmasked_weight, of_training)  # no text is dropped
    kept, _ = split_held_out(examples, images.held_out)
    _, held_out = split_held_out(replace(examples, choices=of_held_out), images.held_out)
    return [Stream("instance", kept)], held_out, prompts


def _text(config: TextualInversionConfig, word: NewWord, caption: str, seed: int, epoch: int, name: str) -> str:
    """What an image is described by in an epoch."""
    draw = random.Random(seeded_number(seed, "text", epoch, name))
    if config.templates == "captions":
        return _naming(word, chosen(caption, draw))
    texts = TEMPLATES[config.templates] if isinstance(config.templates, str) else config.templates
    return draw.choice(texts).replace("{}", word.token)


def _naming(word: NewWord, caption: str) -> str:
    read = word.read(caption)
    return read if word.token in read else ", ".join(filter(None, (word.token, read)))
