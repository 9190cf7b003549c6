"""The files between the encoding stages and the training stages: safetensors, the same bytes each time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.pipeline.outputs import atomic_file

METADATA_KEY = "encoded"
"""The only metadata key: safetensors writes several in no fixed order."""


@dataclass(frozen=True)
class EncodedImages:
    """The VAE's posterior of each image and of its mirror image.

    Attributes:
        file_names: N names, without folder.
        mean: (N, 2, C, h, w), not times the scaling factor; index 1 of the second dimension is the mirror image.
        std: the same shape.
        scaling_factor: the VAE's.
        resolution: pixels of one side of the images.
        shapes: (N, 2), h and w of each image's latents, where there are several: mean and std are then (N, 2, C, L), h and w
            made one dimension and padded with zeros.
        problems: what was found to be wrong with the images.
        held_out: names of the images that are held out from every training.
        masks: (N, h, w) in [0, 1], how much of each pixel of the latents belongs to the subject; (N, L), padded with zeros,
            where there are several shapes. 1 everywhere for an image without a mask; None where none has one.
        repeats: how often an epoch shows each image; () where each is shown once.
        image_sets: the name of the set that each image belongs to; () where there are none.
    """

    file_names: list[str]
    mean: Tensor
    std: Tensor
    scaling_factor: float
    resolution: int
    shapes: Tensor | None = None
    problems: Sequence[str] = ()
    held_out: Sequence[str] = ()
    masks: Tensor | None = None
    repeats: Sequence[int] = ()
    image_sets: Sequence[str] = ()

    def chosen(self, numbers: Sequence[int]) -> "EncodedImages":
        """Some of the images, by their numbers."""
        picked = list(numbers)
        return replace(
            self,
            file_names=[self.file_names[number] for number in picked],
            mean=self.mean[picked],
            std=self.std[picked],
            shapes=None if self.shapes is None else self.shapes[picked],
            masks=None if self.masks is None else self.masks[picked],
            repeats=[self.repeats[number] for number in picked] if self.repeats else (),
            image_sets=[self.image_sets[number] for number in picked] if self.image_sets else (),
        )


@dataclass(frozen=True)
class EncodedCaptions:
    """Embeddings of captions.

    Attributes:
        file_names: N names of the images described.
        captions: N texts.
        prompt_embeds: (N, L, D).
        empty_prompt_embeds: (L, D), of "".
        clip_skip: layers that were left out at the end of the text encoder.
        problems: what was found to be wrong with the captions.
    """

    file_names: list[str]
    captions: list[str]
    prompt_embeds: Tensor
    empty_prompt_embeds: Tensor
    clip_skip: int
    problems: Sequence[str] = ()


def write_encoded(encoded: EncodedImages | EncodedCaptions, path: Path) -> None:
    """Write a file of encoded images or captions: its tensors, and the rest as metadata."""
    values = vars(encoded)
    tensors = {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in values.items() if name not in tensors and value not in (None, ())}
    with atomic_file(path) as part:
        save_file(tensors, part, metadata={METADATA_KEY: json.dumps(rest, sort_keys=True)})


def read_encoded_images(path: Path) -> EncodedImages:
    """Read what the stage encode_images wrote."""
    return EncodedImages(**_read(path, ("mean", "std")))


def read_encoded_captions(path: Path) -> EncodedCaptions:
    """Read what the stage encode_captions wrote."""
    return EncodedCaptions(**_read(path, ("prompt_embeds", "empty_prompt_embeds")))


def _read(path: Path, tensors: tuple[str, ...]) -> dict[str, Any]:
    """The tensors of these names and the metadata; ValueError if the file is not of that kind."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA_KEY])
            return {name: file.get_tensor(name) for name in {*tensors, *file.keys()}} | metadata
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path}: not a file of encoded {'images' if 'mean' in tensors else 'captions'}: {error}") from error
