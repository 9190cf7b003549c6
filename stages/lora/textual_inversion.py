"""What a word is trained on: images, each under texts that hold the word (Gal et al. 2022, section 4.2, arXiv:2208.01618)."""

from collections.abc import Mapping

import torch

from stages.encoding.encoded_files import EncodedImages
from stages.encoding.words import TEMPLATES, NewWord
from stages.lora.batches import Examples, Stream, split_held_out
from stages.lora.config import TextualInversionConfig


def word_of(config: TextualInversionConfig, vectors: int) -> NewWord:
    """The word that the settings describe.

    Raises:
        ValueError: they name none.
    """
    if config.placeholder_token is None:
        raise ValueError("placeholder_token: is null: name the word, such as <asuka>")
    return NewWord(config.placeholder_token, config.replaces or "", config.initializer, vectors)


def textual_inversion_streams(
    images: EncodedImages, captions: Mapping[str, str], config: TextualInversionConfig, word: NewWord
) -> tuple[list[Stream], Examples | None, list[str]]:
    """The images under the templates or under their captions; the held-out images come apart.

    Args:
        images: of the subject, or in the style.
        captions: by file name, where `config.templates` is "captions": each names the word, or begins with it then.
        config: the run's settings.
        word: that is taught.

    Returns:
        the stream, the held-out images, and the prompts in the order of their numbers.

    Raises:
        ValueError: an image has no caption.
    """
    if config.templates == "captions":
        if without := [name for name in images.file_names if name not in captions]:
            raise ValueError(f"{without[0]} has no caption: run caption again, or set templates to subject")
        prompts = [_naming(word, captions[name]) for name in images.file_names]
        choices = torch.arange(len(prompts))[:, None]
    else:
        templates = TEMPLATES[config.templates] if isinstance(config.templates, str) else config.templates
        prompts = [template.replace("{}", word.token) for template in templates]
        choices = torch.arange(len(prompts)).expand(len(images.file_names), -1)
    numbers = torch.arange(len(prompts))
    examples = Examples(
        images.mean,
        images.std,
        images.scaling_factor,
        numbers,
        numbers[0],  # none is dropped
        tuple(images.file_names),
        images.shapes,
        choices,
    )
    kept, held_out = split_held_out(examples, images.held_out)
    return [Stream("instance", kept)], held_out, prompts


def _naming(word: NewWord, caption: str) -> str:
    read = word.read(caption)
    return read if word.token in read else ", ".join(filter(None, (word.token, read)))
