"""Words that a text encoder was taught: vectors of their own (textual inversion, Gal et al. 2022, arXiv:2208.01618).

The file is the one that diffusers' script writes: a tensor (n, D) under the word. `load_textual_inversion`, A1111 and ComfyUI
read it, the last two by the file's name in place of the word. A word of several vectors is as many tokens, <word> <word>_1 …,
as in diffusers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from stages.checkpoints.file_names import EMBEDDING_FILE
from stages.encoding.prompts import spelled
from stages.pipeline.wording import in_place

METADATA_KEY = "textual_inversion"
"""The only metadata key: safetensors writes several in no fixed order."""


@dataclass(frozen=True)
class NewWord:
    """A word that is taught.

    Attributes:
        token: as prompts have it, such as <asuka>.
        replaces: the words of prompts in whose place it is read; "" where prompts have the token itself.
        initializer: words whose vectors its own begin as.
        count: of its vectors.
    """

    token: str
    replaces: str
    initializer: str
    count: int

    @property
    def tokens(self) -> list[str]:
        """One a vector."""
        return [self.token, *(f"{self.token}_{number}" for number in range(1, self.count))]

    def read(self, prompt: str) -> str:
        """A prompt with the token in the place of what it replaces."""
        return in_place(prompt, self.replaces, self.token)


@dataclass(frozen=True)
class Learned:
    """What was learnt of a word.

    Attributes:
        token: as prompts have it.
        vectors: (n, D) float32.
        replaces: the words of prompts in whose place it is read; "" for none.
        settings: what else the file says of its training.
    """

    token: str
    vectors: Tensor
    replaces: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def add_word(tokenizer: CLIPTokenizer, word: NewWord) -> list[int]:
    """Have a tokenizer know a word.

    Returns:
        the tokens that its vectors begin as: the initializer's, which are gone through again where it has fewer.

    Raises:
        ValueError: the tokenizer has the token already, reads several for it, or reads nothing of the initializer.
    """
    if known := [token for token in word.tokens if token in tokenizer.get_vocab()]:
        raise ValueError(f"placeholder_token: given {word.token!r}: the tokenizer has {known[0]!r} already: take another")
    (first,) = tokenizer([word.initializer], add_special_tokens=False, verbose=False).input_ids
    if not first:
        raise ValueError(f"initializer: given {word.initializer!r}: the tokenizer reads nothing of it: name a word")
    tokenizer.add_tokens(word.tokens)
    spelling: Any = tokenizer(spelled(tokenizer, [word.token]), add_special_tokens=False).input_ids
    if spelling != [tokenizer.convert_tokens_to_ids(word.tokens)]:
        raise ValueError(f"placeholder_token: given {word.token!r}: the tokenizer reads it as something else: take <a-word>")
    return [first[number % len(first)] for number in range(word.count)]


def write_learned(learned: Learned, path: Path) -> None:
    """Write what was learnt; the same vectors and settings give the same bytes."""
    said = {**learned.settings, "replaces": learned.replaces}
    save_file(
        {learned.token: learned.vectors.detach().float().contiguous().cpu()},
        path,
        metadata={METADATA_KEY: json.dumps(said, sort_keys=True, default=str)},
    )


def read_learned(file: Path) -> Learned:
    """Read a file of this project, of diffusers (.safetensors, .bin) or of A1111 (.pt).

    Raises:
        ValueError: it is no such file.
    """
    try:
        said, tensors = _read(file)
        if "string_to_param" in tensors:  # A1111
            token, vectors = str(tensors["name"]), next(iter(tensors["string_to_param"].values()))
        else:
            ((token, vectors),) = tensors.items()
        vectors = torch.atleast_2d(vectors.detach().float())
        if vectors.ndim != 2 or not vectors.isfinite().all():
            raise ValueError("its tensor is not one or several vectors of numbers")
    except Exception as error:  # of safetensors, of pickles, of what lies in them
        raise ValueError(f"{file}: no textual inversion of one word: {' '.join(str(error).split())[:200]}") from error
    return Learned(token, vectors, said.pop("replaces", ""), said)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            said = json.loads((opened.metadata() or {}).get(METADATA_KEY, "{}"))
            return said, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    return {}, torch.load(file, weights_only=True, map_location="cpu")


def learned_file(path: Path) -> Path:
    """The file of what was learnt: `path` itself, or the one in the directory `path`.

    Raises:
        FileNotFoundError: there is none.
    """
    file = path / EMBEDDING_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file: give a textual inversion's file, or the directory of its training")
    return file


TEMPLATES: Mapping[str, Sequence[str]] = {
    "subject": (
        "a photo of a {}",
        "a rendering of a {}",
        "a cropped photo of the {}",
        "the photo of a {}",
        "a photo of a clean {}",
        "a photo of a dirty {}",
        "a dark photo of the {}",
        "a photo of my {}",
        "a photo of the cool {}",
        "a close-up photo of a {}",
        "a bright photo of the {}",
        "a cropped photo of a {}",
        "a photo of the {}",
        "a good photo of the {}",
        "a photo of one {}",
        "a close-up photo of the {}",
        "a rendition of the {}",
        "a photo of the clean {}",
        "a rendition of a {}",
        "a photo of a nice {}",
        "a good photo of a {}",
        "a photo of the nice {}",
        "a photo of the small {}",
        "a photo of the weird {}",
        "a photo of the large {}",
        "a photo of a cool {}",
        "a photo of a small {}",
    ),
    "style": (
        "a painting in the style of {}",
        "a rendering in the style of {}",
        "a cropped painting in the style of {}",
        "the painting in the style of {}",
        "a clean painting in the style of {}",
        "a dirty painting in the style of {}",
        "a dark painting in the style of {}",
        "a picture in the style of {}",
        "a cool painting in the style of {}",
        "a close-up painting in the style of {}",
        "a bright painting in the style of {}",
        "a good painting in the style of {}",
        "a rendition in the style of {}",
        "a nice painting in the style of {}",
        "a small painting in the style of {}",
        "a weird painting in the style of {}",
        "a large painting in the style of {}",
    ),
}
"""The descriptions of the paper's supplement (after CLIP's templates for ImageNet), with {} for the word."""
