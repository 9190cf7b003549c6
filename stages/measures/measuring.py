"""The values of every metric for each image of a variant, by prompt and seed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
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
        of_sets: of each image set, (M,), which references belong to it.
        held_out: whether the references were held out from training.
    """

    training: Mapping[str, Embeddings]
    references: Mapping[str, Embeddings]
    training_names: Sequence[str]
    held_out: bool
    of_sets: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    @cached_property
    def ceilings(self) -> dict[str, float]:
        """By encoder, the mean cosine of a reference with the others: what likeness to them reaches. Of one, there is none."""
        several: dict[str, list[Embeddings]] = {}
        for name, rows in self.references.items():
            groups = [rows[of_set] for of_set in self.of_sets.values()] or [rows]
            several[name] = [group for group in groups if len(group) > 1]
        return {
            name: float(np.concatenate([likeness.among_themselves(group) for group in groups]).mean())
            for name, groups in several.items()
            if groups
        }

    def reference_similarity(self, encoder: str, images: Embeddings, subjects: Sequence[Collection[str]]) -> Values:
        """The mean cosine of each image with the references, (P, S).

        Args:
            encoder: that embedded the images.
            images: (P, S, D).
            subjects: for each prompt the image sets that it asks for; of none of them, it is all references.

        Raises:
            ValueError: of what a prompt asks for there is no reference.
        """
        references = self.references[encoder]
        if not any(subjects):
            return likeness.reference_similarity(images, references)
        values = []
        for of_prompt, names in zip(images, subjects, strict=True):
            chosen = references[np.any([self.of_sets[name] for name in names], axis=0)] if names else references
            if not len(chosen):
                raise ValueError(
                    f"subjects: no image of {', '.join(sorted(names))} is held out: set download.held_out_images higher"
                )
            values.append(likeness.reference_similarity(of_prompt, chosen))
        return np.stack(values)


def dataset_of(embedded: Embedded, held_out: Sequence[str], sets: Mapping[str, str] | None = None) -> Dataset:
    """Split the embeddings of a dataset into what is trained on and what is held out.

    Args:
        embedded: of all images.
        held_out: names of those that were held out from training; where there are none, likeness is to the training images.
        sets: the image set of each image that belongs to one that is looked at by itself.
    """
    apart = np.array([name in held_out for name in embedded.file_names], dtype=bool)
    training = {name: rows[~apart] for name, rows in embedded.images.items()}
    references = {name: rows[apart] for name, rows in embedded.images.items()} if apart.any() else training
    names = [name for name, held in zip(embedded.file_names, apart, strict=True) if not held]
    referred = [name for name, held in zip(embedded.file_names, apart, strict=True) if held] or names
    of_sets = {
        each: np.array([(sets or {}).get(name) == each for name in referred], dtype=bool)
        for each in sorted(set((sets or {}).values()))
    }
    return Dataset(training, references, names, bool(apart.any()), of_sets)


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


def measure(
    embedded: Embedded, before: Embedded, dataset: Dataset, subjects: Sequence[Collection[str]], seeds: int
) -> Measured:
    """Measure the images of a variant.

    Args:
        embedded: of the variant; its images stand prompt by prompt, each with all seeds.
        before: of the same merge without a LoRA, or of the variant itself: what drift is measured from.
        dataset: what likeness is measured to.
        subjects: for each prompt the image sets that it asks for, if there are several.
        seeds: how many.
    """
    prompts = len(subjects)
    images = {name: rows.reshape(prompts, seeds, -1) for name, rows in embedded.images.items()}
    similarity, which = likeness.nearest(images[DINO], dataset.training[DINO])
    by_image = {
        "dino_similarity": dataset.reference_similarity(DINO, images[DINO], subjects),
        "clip_similarity": dataset.reference_similarity(CLIP, images[CLIP], subjects),
        "prompt_similarity": likeness.prompt_similarity(images[CLIP], embedded.texts),
        "nearest_training_similarity": similarity,
        "drift": likeness.drift(images[DINO], before.images[DINO].reshape(prompts, seeds, -1)),
    }
    diversity = likeness.diversity(images[DINO]) if seeds > 1 else np.full(prompts, np.nan)
    floor = float(likeness.other_prompt_similarity(images[CLIP], embedded.texts).mean()) if prompts > 1 else float("nan")
    copied = likeness.copied(images[DINO], dataset.training[DINO])
    return Measured(by_image, diversity, which, copied, images, floor)
