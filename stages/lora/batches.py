"""Batches of training, as pure functions of the seed and of where in the run they stand.

Nothing here has a state: the n-th sample of a run is the same whatever was drawn before it, so a resumed run goes on as if
it had never stopped, and processes that share a batch need not talk about it.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Literal

import torch
from torch import Tensor

from stages.pipeline.wording import counted

HELD_OUT_SEED = 0
"""Of the noise that held-out images are looked at with: the same for every training, so that trainings compare."""
HELD_OUT_TIMESTEPS = 4
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
        file_names: of the images.
        shapes: (N, 2), h and w of each image, where there are several; mean and std are then (N, 2, C, h w), padded.
        choices: (E, N), the prompt of each image in each epoch, which begin anew after the last; prompt_embeds are then
            (M, L, D) or (M,), of all prompts.
    """

    mean: Tensor
    std: Tensor
    scaling_factor: float
    prompt_embeds: Tensor
    empty_prompt_embeds: Tensor
    file_names: tuple[str, ...] = ()
    shapes: Tensor | None = None
    choices: Tensor | None = None

    def __len__(self) -> int:
        """How many images."""
        return len(self.mean)

    @cached_property
    def buckets(self) -> dict[str, list[int]]:
        """The numbers of the images of each shape, by what the shape is called: "" where there is but one."""
        if self.shapes is None:
            return {"": list(range(len(self)))}
        numbers: dict[str, list[int]] = {}
        for number, (height, width) in enumerate(self.shapes.tolist()):
            numbers.setdefault(f"{width}x{height}", []).append(number)
        return dict(sorted(numbers.items()))

    def posterior(self, index: int, mirrored: int) -> tuple[Tensor, Tensor]:
        """Mean and std, (C, h, w), of an image or of its mirror image."""
        mean, std = self.mean[index, mirrored], self.std[index, mirrored]
        if self.shapes is None:
            return mean, std
        height, width = self.shapes[index].tolist()
        length, shape = height * width, (-1, height, width)
        return mean[:, :length].view(shape), std[:, :length].view(shape)

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
        )

    def prompt_of(self, index: int, epoch: int) -> Tensor:
        """The embeddings, (L, D), or the number of an image's prompt in an epoch, counted from 0."""
        return self.prompt_embeds[index if self.choices is None else self.choices[epoch % len(self.choices), index]]


@dataclass(frozen=True)
class Stream:
    """Examples in an endless sequence, epoch after epoch, each epoch in an order of its own.

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
    """How noise, timestep and augmentation are drawn when an image is trained on.

    Attributes:
        seed: of all random numbers.
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

    def apply(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """A batch of what a function makes of each tensor."""
        return Batch(*map(function, tensors_of(self)))

    def samples(self, chosen: slice) -> "Batch":
        """A batch of some of the samples, each with the weight that it has."""
        return self.apply(lambda tensor: tensor[chosen])

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return self.apply(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class MixedBatch:
    """What an optimizer step sees where shapes differ: a forward pass for each of them."""

    parts: tuple[Batch, ...]

    def apply(self, function: Callable[[Tensor], Tensor]) -> "MixedBatch":
        """A batch of what a function makes of each tensor."""
        return MixedBatch(tuple(part.apply(function) for part in self.parts))

    def samples(self, chosen: slice) -> "MixedBatch":
        """A batch of some of the samples of each part, each with the weight that it has."""
        return MixedBatch(tuple(part.samples(chosen) for part in self.parts))

    def to(self, device: torch.device) -> "MixedBatch":
        """The same batch on a device."""
        return MixedBatch(tuple(part.to(device) for part in self.parts))


AnyBatch = Batch | MixedBatch


def tensors_of(batch: AnyBatch) -> list[Tensor]:
    """All tensors of a batch, in an order of their own."""
    parts = batch.parts if isinstance(batch, MixedBatch) else (batch,)
    return [getattr(part, field.name) for part in parts for field in fields(Batch)]


def batch_at(streams: Sequence[Stream], draws: Draws, batch_size: int, number: int) -> AnyBatch:
    """The batch of the given number, counted from 0: `batch_size` samples of each stream, those of a stream of one shape."""
    turns = [turn_at(stream, draws.seed, batch_size, number) for stream in streams]
    return join(
        [make_batch(stream, positions, draws, bucket) for stream, (bucket, positions) in zip(streams, turns, strict=True)]
    )


def names_at(streams: Sequence[Stream], seed: int, batch_size: int, number: int) -> list[str]:
    """The file names of the images in the batch of the given number."""
    names = []
    for stream in streams:
        bucket, positions = turn_at(stream, seed, batch_size, number)
        names += [stream.examples.file_names[_index(stream, bucket, position, seed)] for position in positions]
    return names


def turn_at(stream: Stream, seed: int, batch_size: int, number: int) -> tuple[str, range]:
    """The bucket that batch `number` of a stream is taken from, and the positions in the bucket's sequence that it takes.

    All images of a batch have one shape, that of their bucket. Each bucket has an endless sequence of its own images, which is
    gone through batch by batch, so every batch is full. A bucket gets as many batches as it has images in every so many
    batches as there are images in all (a period): in a period each image is shown `batch_size` times. Within a period, the
    order of the buckets is random.
    """
    buckets = stream.examples.buckets
    if len(buckets) == 1:
        return next(iter(buckets)), range(number * batch_size, (number + 1) * batch_size)
    turns = even_turns(tuple((name, len(images)) for name, images in buckets.items()))
    period, place = divmod(number, len(turns))
    length = math.ceil(len(turns) / batch_size)
    epoch, offset = divmod(place, length)
    begun, order = turns[: epoch * length], turns[epoch * length : (epoch + 1) * length]
    order = [order[index] for index in epoch_order(seed, f"{stream.name} turns {period}", epoch, len(order))]
    bucket = order[offset]
    done = period * len(buckets[bucket]) + begun.count(bucket) + order[:offset].count(bucket)
    return bucket, range(done * batch_size, (done + 1) * batch_size)


@lru_cache(maxsize=8)
def even_turns(buckets: tuple[tuple[str, int], ...]) -> list[str]:
    """Each bucket's name as often as it has images, spread evenly."""
    turns = [((2 * turn + 1) / (2 * count), name) for name, count in buckets for turn in range(count)]
    return [name for _, name in sorted(turns)]


def make_batch(stream: Stream, positions: range, draws: Draws, bucket: str = "") -> Batch:
    """A batch of the images at `positions` of a bucket's sequence, where epoch n is [n * images, (n + 1) * images)."""
    samples = [_sample(stream, bucket, position, draws) for position in positions]
    latents, noise, timesteps, prompt_embeds = (torch.stack(parts) for parts in zip(*samples, strict=True))
    return Batch(latents, noise, timesteps, prompt_embeds, torch.full((len(samples),), stream.weight / len(samples)))


def join(batches: Sequence[Batch]) -> AnyBatch:
    """One batch of several; where their shapes differ, a `MixedBatch` of them."""
    if len({batch.latents.shape[1:] for batch in batches}) > 1:
        return MixedBatch(tuple(batches))
    return Batch(*(torch.cat([getattr(batch, field.name) for batch in batches]) for field in fields(Batch)))


def _sample(stream: Stream, bucket: str, position: int, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The latents, noise, timestep and prompt embeddings at one position of a stream."""
    examples = stream.examples
    index, epoch = _index(stream, bucket, position, draws.seed), position // len(examples.buckets[bucket])
    shape = examples.posterior(index, 0)[0].shape
    # Everything is drawn whether it is used or not: turning one thing off leaves the others as they were.
    generator = seeded_generator(draws.seed, _sequence(stream, bucket), "sample", position)
    noise = torch.randn(shape, generator=generator)
    posterior_noise = torch.randn(shape, generator=generator)
    shift = torch.randn((shape[0], 1, 1), generator=generator)
    timestep = torch.randint(draws.num_train_timesteps, (), generator=generator)
    flip, drop = torch.rand(2, generator=generator).tolist()
    mirrored = int(draws.random_flip and flip < 0.5)
    mean, std = examples.posterior(index, mirrored)
    latents = mean + std * posterior_noise
    dropped = drop < stream.caption_dropout
    prompt_embeds = examples.empty_prompt_embeds if dropped else examples.prompt_of(index, epoch)
    return latents * examples.scaling_factor, noise + draws.noise_offset * shift, timestep, prompt_embeds


def _index(stream: Stream, bucket: str, position: int, seed: int) -> int:
    """The number of the image at a position of a bucket's sequence."""
    images = stream.examples.buckets[bucket]
    epoch, place = divmod(position, len(images))
    return images[epoch_order(seed, _sequence(stream, bucket), epoch, len(images))[place]]


def _sequence(stream: Stream, bucket: str) -> str:
    """What the sequence of a bucket is called; sequences of different names draw independently."""
    return f"{stream.name} {bucket}" if bucket else stream.name


@lru_cache(maxsize=128)
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
    return examples.chosen(kept), examples.chosen(held)


def held_out_batches(examples: Examples, draws: Draws, batch_size: int) -> list[Batch]:
    """Each example at `HELD_OUT_TIMESTEPS` timesteps, evenly spread, with noise that is the same whatever the training's seed.

    The batches weigh as much as they have samples, so that the mean of their losses is the mean over samples.
    """
    fixed = replace(draws, seed=HELD_OUT_SEED, random_flip=False, noise_offset=0.0)
    spread = [(2 * part + 1) * draws.num_train_timesteps // (2 * HELD_OUT_TIMESTEPS) for part in range(HELD_OUT_TIMESTEPS)]
    parts = []
    for bucket, images in examples.buckets.items():
        whole = make_batch(Stream("held out", examples), range(len(images) * HELD_OUT_TIMESTEPS), fixed, bucket)
        whole = replace(whole, timesteps=torch.tensor(spread).repeat_interleave(len(images)))
        parts += [whole.samples(slice(start, start + batch_size)) for start in range(0, len(whole.timesteps), batch_size)]
    weight = len(parts) / (len(examples) * HELD_OUT_TIMESTEPS)
    return [replace(part, weights=torch.full_like(part.weights, weight)) for part in parts]
