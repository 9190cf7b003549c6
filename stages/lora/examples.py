"""Encoded images with encoded descriptions: what a training draws its batches from."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from stages.encoding.encoded_files import EncodedImages
from stages.pipeline.wording import counted


@dataclass(frozen=True)
class Examples:
    """Encoded images with encoded descriptions.

    Attributes:
        mean: (N, 2, C, h, w), of the VAE's posterior; index 1 of the second dimension is the mirror image.
        std: (N, 2, C, h, w), of the same.
        scaling_factor: what the VAE's latents are multiplied by before the UNet sees them.
        prompt_embeds: (N, L, D); or (N,), numbers of prompts, where the text encoder is trained.
        empty_prompt_embeds: (L, D), of the prompt ""; what a dropped caption is replaced by. Or its number.
        file_names: of the images.
        shapes: (N, 2), h and w of each image, where there are several; mean and std are then (N, 2, C, h w), padded.
        choices: (E, N), the prompt of each image in each epoch, which begin anew after the last; prompt_embeds are then
            (M, L, D) or (M,), of all prompts. An image that is shown several times an epoch takes as many rows.
        pixel_weights: (N, h, w), of each pixel of the latents in the loss, of mean 1 over an image; (N, h w), padded, where
            there are several shapes. None where all count alike.
        repeats: how often each image is shown in an epoch; () where each is shown once.
    """

    mean: Tensor
    std: Tensor
    scaling_factor: float
    prompt_embeds: Tensor
    empty_prompt_embeds: Tensor
    file_names: tuple[str, ...] = ()
    shapes: Tensor | None = None
    choices: Tensor | None = None
    pixel_weights: Tensor | None = None
    repeats: tuple[int, ...] = ()

    def __len__(self) -> int:
        """How many images."""
        return len(self.mean)

    @property
    def shown(self) -> int:
        """How many images an epoch shows, each as often as it is repeated."""
        return sum(self.repeats) if self.repeats else len(self)

    @cached_property
    def buckets(self) -> dict[str, list[int]]:
        """The numbers of the images of each shape, each as often as an epoch shows it, by what the shape is called.

        That is "" where there is but one.
        """
        if self.shapes is None:
            return {"": self._repeated(range(len(self)))}
        numbers: dict[str, list[int]] = {}
        for number, (height, width) in enumerate(self.shapes.tolist()):
            numbers.setdefault(f"{width}x{height}", []).append(number)
        return {name: self._repeated(numbers[name]) for name in sorted(numbers)}

    def _repeated(self, numbers: Sequence[int]) -> list[int]:
        return [number for number in numbers for _ in range(self.repeats_of(number))]

    def repeats_of(self, index: int) -> int:
        """How often an epoch shows an image."""
        return self.repeats[index] if self.repeats else 1

    def posterior(self, index: int, mirrored: int) -> tuple[Tensor, Tensor]:
        """Mean and std, (C, h, w), of an image or of its mirror image."""
        return self._in_shape(self.mean[index, mirrored], index), self._in_shape(self.std[index, mirrored], index)

    def weights_of_pixels(self, index: int, mirrored: int) -> Tensor | None:
        """(1, h, w), what each pixel of an image, or of its mirror image, counts in the loss; None where all count alike."""
        if self.pixel_weights is None:
            return None
        weights = self._in_shape(self.pixel_weights[index][None], index)
        return weights.flip(-1) if mirrored else weights

    def _in_shape(self, tensor: Tensor, index: int) -> Tensor:
        """(C, h, w) of (C, h w), padded, where there are several shapes."""
        if self.shapes is None:
            return tensor
        height, width = self.shapes[index].tolist()
        return tensor[:, : height * width].view(-1, height, width)

    def chosen(self, numbers: Sequence[int]) -> "Examples":
        """Some of the images, by their numbers."""
        picked = list(numbers)
        return replace(
            self,
            mean=self.mean[picked],
            std=self.std[picked],
            prompt_embeds=self.prompt_embeds[picked] if self.choices is None else self.prompt_embeds,
            file_names=tuple(self.file_names[number] for number in picked) if self.file_names else (),
            shapes=None if self.shapes is None else self.shapes[picked],
            choices=None if self.choices is None else self.choices[:, picked],
            pixel_weights=None if self.pixel_weights is None else self.pixel_weights[picked],
            repeats=tuple(self.repeats[number] for number in picked) if self.repeats else (),
        )

    def prompt_of(self, index: int, time: int) -> Tensor:
        """The embeddings, (L, D), or the number of an image's prompt.

        Args:
            index: of the image.
            time: how often it was shown before in the run.
        """
        return self.prompt_embeds[index if self.choices is None else self.choices[time % len(self.choices), index]]


def examples_of(
    images: EncodedImages,
    prompt_embeds: Tensor,
    empty_prompt_embeds: Tensor,
    unmasked_weight: float,
    choices: Tensor | None = None,
) -> Examples:
    """Encoded images with what describes them.

    Args:
        images: in the order of what describes them.
        prompt_embeds: see `Examples`.
        empty_prompt_embeds: see `Examples`.
        unmasked_weight: of what masks leave out, in the loss; 1 makes all pixels count alike.
        choices: see `Examples`.
    """
    return Examples(
        images.mean,
        images.std,
        images.scaling_factor,
        prompt_embeds,
        empty_prompt_embeds,
        tuple(images.file_names),
        images.shapes,
        choices,
        pixel_weights(images, unmasked_weight),
        tuple(images.repeats),
    )


def pixel_weights(images: EncodedImages, unmasked_weight: float) -> Tensor | None:
    """What each pixel of the latents counts in the loss, the mean over each image being 1; None where all count alike.

    With the squared error the weighted mean over a mask results: an image counts as much as any other, whatever share of it
    its mask covers.

    Raises:
        ValueError: of an image nothing would count.
    """
    if images.masks is None or unmasked_weight == 1:
        return None
    weights = images.masks + unmasked_weight * (1 - images.masks)
    if images.shapes is not None:
        inside = torch.arange(weights.shape[1]) < images.shapes.prod(dim=1, keepdim=True)
        weights = weights * inside
        areas = images.shapes.prod(dim=1).float()
    else:
        areas = torch.tensor(float(weights[0].numel()))
    means = weights.flatten(1).sum(dim=1) / areas
    if not bool((means > 0).all()):
        name = images.file_names[int(means.argmin())]
        raise ValueError(
            f"unmasked_weight: given 0: of {name} the mask leaves nothing to learn from, or the crop nothing of the mask: "
            "leave the image out, crop it, or give the rest a weight"
        )
    return weights / means.view(-1, *[1] * (weights.ndim - 1))


def split_held_out(examples: Examples, names: Collection[str]) -> tuple[Examples, Examples | None]:
    """Split examples into those to train on, and those whose names are held out; None where none is.

    Raises:
        ValueError: none would be left to train on.
    """
    held = [number for number, name in enumerate(examples.file_names) if name in names]
    if not held:
        return examples, None
    if len(held) == len(examples):
        total = counted(len(examples), "image")
        raise ValueError(f"all of {total} are held out from training (download.held_out_images): some must be left to train on")
    kept = sorted(set(range(len(examples))) - set(held))
    return examples.chosen(kept), replace(examples.chosen(held), repeats=())
