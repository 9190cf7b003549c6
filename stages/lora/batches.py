"""Batches of training, as pure functions of the seed and of where in the run they stand.

Nothing here has a state: the n-th sample of a run is the same whatever was drawn before it, so a resumed run goes on as if
it had never stopped, and processes that share a batch need not talk about it.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

VALIDATION_TIMESTEPS = 4
"""At how many timesteps each held-out image is looked at: the loss depends on them more than on the image."""


@dataclass(frozen=True)
class Examples:
    """Encoded images with encoded descriptions.

    Attributes:
        mean: (N, 2, C, h, w), of the VAE's posterior; index 1 of the second dimension is the mirror image.
        std: (N, 2, C, h, w), of the same.
        scaling_factor: what the VAE's latents are multiplied by before the UNet sees them.
        prompt_embeds: (N, L, D); or (N,), numbers of prompts, where the text encoder is trained.
        empty_prompt_embeds: (L, D), of the prompt ""; what a dropped caption is replaced by. Or its number.
    """

    mean: Tensor
    std: Tensor
    scaling_factor: float
    prompt_embeds: Tensor
    empty_prompt_embeds: Tensor

    def __len__(self) -> int:
        """How many images."""
        return len(self.mean)


@dataclass(frozen=True)
class Stream:
    """An endless sequence of examples that shows each of them once an epoch.

    Attributes:
        name: "instance" for what is to be learnt, "class" for what is to be kept (prior preservation); streams of different
            names draw independently.
        examples: to choose from.
        weight: of the whole stream in the loss.
        caption_dropout: share of the samples that get the empty prompt.
    """

    name: Literal["instance", "class", "held out"]
    examples: Examples
    weight: float = 1.0
    caption_dropout: float = 0.0


@dataclass(frozen=True)
class Draws:
    """What is left to chance when an example becomes a sample.

    Attributes:
        seed: of everything.
        num_train_timesteps: of the noise schedule; timesteps are uniform in [0, this).
        random_flip: show half of the images as their mirror images.
        noise_offset: strength of a shift of the noise that a whole channel shares
            (https://www.crosslabs.org/blog/diffusion-with-offset-noise).
    """

    seed: int
    num_train_timesteps: int
    random_flip: bool
    noise_offset: float


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees.

    Attributes:
        latents: (B, C, h, w), times the VAE's scaling factor, without noise.
        noise: (B, C, h, w).
        timesteps: (B,), whole numbers.
        encoder_hidden_states: (B, L, D); or (B,), numbers of prompts, where the text encoder is trained.
        weights: (B,), of each sample in the loss.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    encoder_hidden_states: Tensor
    weights: Tensor

    def samples(self, chosen: slice) -> "Batch":
        """A batch of some of the samples, each with the weight that it has."""
        return Batch(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def batch_at(streams: Sequence[Stream], draws: Draws, batch_size: int, number: int) -> Batch:
    """The batch of the given number, counted from 0: `batch_size` samples of each stream."""
    positions = range(number * batch_size, (number + 1) * batch_size)
    return join(make_batch(stream, positions, draws) for stream in streams)


def make_batch(stream: Stream, positions: range, draws: Draws) -> Batch:
    """The samples at `positions` of a stream; epoch n is [n * len(examples), (n + 1) * len(examples))."""
    samples = [_sample(stream, position, draws) for position in positions]
    latents, noise, timesteps, prompt_embeds = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return Batch(latents, noise, timesteps, prompt_embeds, torch.full((len(samples),), stream.weight / len(samples)))


def join(batches: Iterable[Batch]) -> Batch:
    """One batch of all samples."""
    batches = list(batches)
    return Batch(*(torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields(Batch)))


def _sample(stream: Stream, position: int, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The latents, noise, timestep and prompt embeddings at one position of a stream."""
    examples = stream.examples
    epoch, place = divmod(position, len(examples))
    index = epoch_order(draws.seed, stream.name, epoch, len(examples))[place]
    shape = examples.mean.shape[2:]
    # Everything is drawn whether it is used or not: turning one thing off leaves the others as they were.
    generator = seeded_generator(draws.seed, stream.name, "sample", position)
    noise = torch.randn(shape, generator=generator)
    posterior_noise = torch.randn(shape, generator=generator)
    shift = torch.randn((shape[0], 1, 1), generator=generator)
    timestep = torch.randint(draws.num_train_timesteps, (), generator=generator)
    flip, drop = torch.rand(2, generator=generator).tolist()
    mirrored = int(draws.random_flip and flip < 0.5)
    latents = examples.mean[index, mirrored] + examples.std[index, mirrored] * posterior_noise
    dropped = drop < stream.caption_dropout
    prompt_embeds = examples.empty_prompt_embeds if dropped else examples.prompt_embeds[index]
    return latents * examples.scaling_factor, noise + draws.noise_offset * shift, timestep, prompt_embeds


@lru_cache(maxsize=8)
def epoch_order(seed: int, stream: str, epoch: int, length: int) -> list[int]:
    """The order in which an epoch shows its examples."""
    return torch.randperm(length, generator=seeded_generator(seed, stream, "order", epoch)).tolist()


def seeded_generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator whose state depends on the seed and the names alone."""
    return torch.Generator().manual_seed(seeded_number(seed, *names))


def seeded_number(seed: int, *names: str | int) -> int:
    """A whole number of 64 bits that depends on the seed and the names alone."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def hold_out(examples: Examples, count: int, seed: int) -> tuple[Examples, Examples]:
    """Split off `count` examples that are not trained on, drawn with the seed.

    Raises:
        ValueError: none would be left to train on.
    """
    total = len(examples)
    if count >= total:
        raise ValueError(f"validation_images: given {count}: there are {total} images, and some must be left to train on")
    order = torch.randperm(total, generator=seeded_generator(seed, "held out")).tolist()
    chosen = [sorted(order[count:]), sorted(order[:count])]
    kept, held = (
        replace(examples, mean=examples.mean[part], std=examples.std[part], prompt_embeds=examples.prompt_embeds[part])
        for part in chosen
    )
    return kept, held


def validation_batches(examples: Examples, draws: Draws, batch_size: int) -> list[Batch]:
    """Each example at `VALIDATION_TIMESTEPS` timesteps, evenly spread, with noise that is the same at every call.

    The batches weigh as much as they have samples, so that the mean of their losses is the mean over samples.
    """
    fixed = replace(draws, random_flip=False, noise_offset=0.0)
    spread = [(2 * part + 1) * draws.num_train_timesteps // (2 * VALIDATION_TIMESTEPS) for part in range(VALIDATION_TIMESTEPS)]
    whole = make_batch(Stream("held out", examples), range(len(examples) * VALIDATION_TIMESTEPS), fixed)
    timesteps = torch.tensor(spread).repeat_interleave(len(examples))
    total = len(timesteps)
    count = math.ceil(total / batch_size)
    weights = torch.full((total,), count / total)
    parts = replace(whole, timesteps=timesteps, weights=weights)
    return [parts.samples(slice(start, start + batch_size)) for start in range(0, total, batch_size)]
