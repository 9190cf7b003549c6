"""Drawings with their attributes as class labels: judge, captioner and scorer are trained on them and measured with them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.mini.drawings.draw_sets import read_array
from stages.mini.drawings.portraits import ADVENTURER, ATTRIBUTES, HELD_OUT_SEEDS, STYLES, SUBJECT_HAIR, draw
from stages.pipeline.outputs import atomic_file
from stages.pipeline.progress import track

LABELS: dict[str, tuple[str, ...]] = {"style": tuple(STYLES)} | {
    name: (*words, SUBJECT_HAIR) if name == "hair" else words for name, words in ATTRIBUTES.items()
}
"""Every label with its words; a word's class is its place among them. Those of hair include the subject's twin tails."""
NOT_SHOWN = -1
SUBJECT_SEEDS = {"train": range(900_000, 1_000_000), "held-out": HELD_OUT_SEEDS}


@dataclass(frozen=True)
class Labelled:
    """Drawings and what they show.

    Attributes:
        images: (N, H, W, 3) uint8.
        labels: (N, len(LABELS)) int8, in the order of LABELS; NOT_SHOWN where the style does not show it.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int8]

    def __len__(self) -> int:
        """How many drawings there are."""
        return len(self.images)

    def column(self, label: str) -> NDArray[np.int8]:
        """The classes of one label, shape (N,)."""
        return self.labels[:, tuple(LABELS).index(label)]

    def attributes(self, index: int) -> tuple[str, dict[str, str]]:
        """The style of one drawing and its attributes, as `drawings.caption` takes them."""
        row = zip(LABELS.items(), self.labels[index], strict=True)
        words = {name: words[number] for (name, words), number in row if number != NOT_SHOWN}
        return words.pop("style"), words

    def subset(self, rows: Sequence[int] | NDArray) -> "Labelled":
        """Some of the drawings."""
        return Labelled(self.images[rows], self.labels[rows])


def encode_labels(style: str, attributes: Mapping[str, str]) -> list[int]:
    """The class of each label for one drawing, in the order of LABELS; NOT_SHOWN where the style does not show it."""
    words = {"style": style, **attributes}
    return [known.index(words[name]) if name in words else NOT_SHOWN for name, known in LABELS.items()]


def drawn_set(work: Path, part: str, count: int | None = None, styles: Iterable[str] = tuple(STYLES)) -> Labelled:
    """The drawings of a part (train or held-out) that `draw_sets` made, at most `count` of each style.

    Raises:
        FileNotFoundError: they have not been drawn.
    """
    images, labels = [], []
    for style in styles:
        path = work / "drawings" / f"{part}-{style}.npy"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run python -m stages.mini.drawings.draw_sets first")
        pixels, attributes = read_array(path)
        images.append(pixels[:count])
        labels += [encode_labels(style, words) for words in attributes[:count]]
    return Labelled(np.concatenate(images), np.array(labels, np.int8))


def draw_held_out(styles: Iterable[str], count: int) -> Labelled:
    """Draw `count` held-out drawings of each style, of the seeds that `draw_sets` begins with."""
    return _draw([(style, seed, {}) for style in styles for seed in HELD_OUT_SEEDS[:count]], "held-out drawings")


def draw_subject_held_out(count: int) -> Labelled:
    """Draw held-out drawings with the subject's hair in any colour."""
    plan = [(ADVENTURER.name, seed, {"hair": SUBJECT_HAIR}) for seed in HELD_OUT_SEEDS[:count]]
    return _draw(plan, "held-out twin tails")


def subject_set(work: Path, part: str, count: int) -> Labelled:
    """Drawings with the subject's hair in any colour, drawn once: the judge alone learns from them."""
    path = work / "twin-tails" / f"{part}-{count}.npz"
    if not path.exists():
        seeds = SUBJECT_SEEDS[part][:count]
        drawn = _draw([(ADVENTURER.name, seed, {"hair": SUBJECT_HAIR}) for seed in seeds], f"drawing twin tails, {part}")
        with atomic_file(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, images=drawn.images, labels=drawn.labels)
    with np.load(path) as stored:
        return Labelled(stored["images"], stored["labels"])


def together(*sets: Labelled) -> Labelled:
    """One set of several."""
    return Labelled(np.concatenate([one.images for one in sets]), np.concatenate([one.labels for one in sets]))


def _draw(plan: Sequence[tuple[str, int, dict[str, str]]], label: str) -> Labelled:
    images, labels = [], []
    for style, seed, asked in track(plan, label):
        image, attributes = draw(style, seed, asked)
        images.append(np.asarray(image))
        labels.append(encode_labels(style, attributes))
    return Labelled(np.stack(images), np.array(labels, np.int8))
