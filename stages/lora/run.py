"""One training as a value: on what, on which model, how, where, and what it leaves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stages.encoding.words import NewWord
from stages.lora.batches import Stream
from stages.lora.config import TrainingConfig
from stages.lora.examples import Examples
from stages.pipeline.config import HousekeepingConfig

CHECKPOINT_FILE = "checkpoint.pt"


@dataclass(frozen=True)
class TrainedPrompts:
    """The prompts of a run that trains its text encoder, or a word that this reads.

    Attributes:
        prompts: the n-th is what the number n in `Batch.encoder_hidden_states` stands for.
        clip_skip: layers left out at the end of the text encoder.
        word: whose vectors are trained; None for none.
    """

    prompts: Sequence[str]
    clip_skip: int
    word: NewWord | None = None

    def read(self, prompt: str) -> str:
        """A prompt with the word that is trained in the place of what it replaces."""
        return prompt if self.word is None else self.word.read(prompt)


@dataclass(frozen=True)
class Previews:
    """How images are drawn while training, to see over-fitting.

    Attributes:
        draw: gives an image of each prompt, from the model's folder, the UNet as it is, embeddings (1 + N, L, D) of "" and of
            the N prompts, and the dtype of the computation.
        recipe: what all of them depend on besides the weights and their prompts, for the text in their files.
        clip_skip: layers left out at the end of the text encoder, as for the training's captions.
    """

    draw: Callable[[Path, Any, Tensor, torch.dtype], list[Image.Image]]
    recipe: Mapping[str, Any]
    clip_skip: int


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        model: the folder, in diffusers layout, of the model that is trained on.
        streams: what it learns from. The images of the first count the epochs.
        config: the settings that decide the result.
        housekeeping: those that do not.
        rank: of the adapter.
        seed: of the adapter's first weights, the order of the images, noise, timesteps and augmentation.
        device: where it computes.
        dtype: of frozen weights and activations; trained weights are always float32.
        cuda_graphs: on a CUDA device, record the steps and launch them whole.
        folder: for checkpoints, previews and what is kept on the way until the end; without one there is none of them.
        trained_prompts: where the text encoder, or a word that it reads, is trained too.
        previews: how previews are drawn, if there are any.
        held_out: images like those of the first stream that are never trained on: their loss shows over-fitting.
        data: what is said of the images and captions in the LoRA's file: `resolution` (pixels of a side), `clip_skip`, and
            `tag_frequency`, how many of the captions hold each of their tags.
    """

    model: Path
    streams: Sequence[Stream]
    config: TrainingConfig
    housekeeping: HousekeepingConfig
    rank: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    cuda_graphs: bool
    folder: Path | None = None
    trained_prompts: TrainedPrompts | None = None
    previews: Previews | None = None
    held_out: Examples | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path | None:
        """The file of the last checkpoint."""
        return self.folder and self.folder / CHECKPOINT_FILE

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps of one epoch of the first stream."""
        return self.streams[0].examples.shown / self.config.effective_batch_size

    @property
    def autocasts(self) -> bool:
        """Whether each operation casts what it is given; elsewhere frozen weights and inputs are of one dtype from the start.

        That is where float32 weights take part in products beside those of a plain LoRA: all of the UNet's, those of LoKr, LoHa
        and DoRA, and where the compiler has the layers as PEFT has them.
        """
        config = self.config
        others = config.tuned == "full" or config.kind != "LORA" or config.use_dora or config.compile
        return self.dtype != torch.float32 and others

    def autocast(self) -> torch.autocast:
        """What the model computes in."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.autocasts)
