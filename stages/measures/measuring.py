"""The values of every metric for each image of a variant, by prompt and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stages.measures import likeness
from stages.measures.embedded_files import Embedded
from stages.measures.likeness import Embeddings, Values

CLIP, DINO = "clip", "dino"
METRICS = (
    "dino_similarity",
    "clip_similarity",
    "prompt_similarity",
    "nearest_training_similarity",
    "drift",
    "diversity",
)
"""What is measured of images; `diversity` of those of a prompt together."""


@dataclass(frozen=True)
class Dataset:
    """The embeddings of the images that are learnt from, and of those held out from training.

    Attributes:
        training: by encoder, (N, D).
        references: by encoder, (M, D): the held-out images, or the training images where none is held out.
        training_names: of the N images.
        held_out: whether the references were held out from training.
    """

    training: Mapping[str, Embeddings]
    references: Mapping[str, Embeddings]
    training_names: Sequence[str]
    held_out: bool

    @cached_property
    def ceilings(self) -> dict[str, float]:
        """By encoder, the mean cosine of a reference with the others: what likeness to them reaches. Of one, there is none."""
        several = {name: rows for name, rows in self.references.items() if len(rows) > 1}
        return {name: float(likeness.among_themselves(rows).mean()) for name, rows in several.items()}


def dataset_of(embedded: Embedded, held_out: Sequence[str]) -> Dataset:
    """Split the embeddings of a dataset into what is trained on and what is held out."""
    apart = np.array([name in held_out for name in embedded.file_names], dtype=bool)
    training = {name: rows[~apart] for name, rows in embedded.images.items()}
    references = {name: rows[apart] for name, rows in embedded.images.items()} if apart.any() else training
    names = [name for name, held in zip(embedded.file_names, apart, strict=True) if not held]
    return Dataset(training, references, names, bool(apart.any()))


@dataclass(frozen=True)
class Measured:
    """What is measured of the images of one variant.

    Attributes:
        by_image: for each metric but diversity, (P, S): by prompt and seed.
        diversity: (P,); NaN where there is one seed.
        nearest: (P, S), the number of the nearest training image.
        copied: (P, S), whether the image counts as a copy of one.
        images: by encoder, (P, S, D).
        floor: the mean cosine of images with the prompts of other images; NaN where there is one prompt.
    """

    by_image: Mapping[str, Values]
    diversity: Values
    nearest: NDArray[np.intp]
    copied: NDArray[np.bool_]
    images: Mapping[str, Embeddings]
    floor: float

    def by_prompt(self, metric: str, seeds: NDArray[np.bool_] | None = None) -> Values:
        """A metric's mean over the seeds, or over some of them, for each prompt: (P,)."""
        if metric == "diversity":
            if seeds is None:
                return self.diversity
            chosen = self.images[DINO][:, seeds]
            return likeness.diversity(chosen) if chosen.shape[1] > 1 else np.full(len(chosen), np.nan)
        values = self.by_image[metric]
        return (values if seeds is None else values[:, seeds]).mean(axis=1)


def measure(embedded: Embedded, before: Embedded, dataset: Dataset, prompts: int, seeds: int) -> Measured:
    """Measure the images of a variant.

    Args:
        embedded: of the variant; its images stand prompt by prompt, each with all seeds.
        before: of the same merge without a LoRA, or of the variant itself: what drift is measured from.
        dataset: what likeness is measured to.
        prompts: how many.
        seeds: how many.
    """
    images = {name: rows.reshape(prompts, seeds, -1) for name, rows in embedded.images.items()}
    similarity, which = likeness.nearest(images[DINO], dataset.training[DINO])
    by_image = {
        "dino_similarity": likeness.reference_similarity(images[DINO], dataset.references[DINO]),
        "clip_similarity": likeness.reference_similarity(images[CLIP], dataset.references[CLIP]),
        "prompt_similarity": likeness.prompt_similarity(images[CLIP], embedded.texts),
        "nearest_training_similarity": similarity,
        "drift": likeness.drift(images[DINO], before.images[DINO].reshape(prompts, seeds, -1)),
    }
    diversity = likeness.diversity(images[DINO]) if seeds > 1 else np.full(prompts, np.nan)
    floor = float(likeness.other_prompt_similarity(images[CLIP], embedded.texts).mean()) if prompts > 1 else float("nan")
    copied = likeness.copied(images[DINO], dataset.training[DINO])
    return Measured(by_image, diversity, which, copied, images, floor)
