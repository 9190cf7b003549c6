"""Batches of training, as pure functions of the seed and of where in the run they stand.

Nothing here has a state: the n-th sample of a run is the same whatever was drawn before it, so a resumed run goes on as if
it had never stopped, and processes that share a batch need not talk about it.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stages.lora.examples import Examples
from stages.lora.objective import NoiseConfig

HELD_OUT_SEED = 0
"""Of the noise that held-out images are looked at with: the same for every training, so that trainings compare."""
HELD_OUT_TIMESTEPS = 4
"""At how many timesteps each held-out image is looked at: the loss depends on them more than on the image."""


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
        num_train_timesteps: of the noise schedule; timesteps are whole numbers in [0, this).
        random_flip: show half of the images as their mirror images.
        config: which noise, and at which timesteps.
    """

    seed: int
    num_train_timesteps: int
    random_flip: bool
    config: NoiseConfig

    def __post_init__(self) -> None:
        """Refuse timesteps that the noise schedule has not."""
        for name, value in (("min_timestep", self.config.min_timestep + 1), ("max_timestep", self.config.max_timestep or 0)):
            if value > self.num_train_timesteps:
                given = getattr(self.config, name)
                raise ValueError(f"{name}: given {given}: the model's noise schedule has {self.num_train_timesteps} timesteps")

    @property
    def timesteps(self) -> range:
        """Those that are trained."""
        return range(self.config.min_timestep, self.config.max_timestep or self.num_train_timesteps)


@dataclass(frozen=True)
class Batch:
    """What one forward pass sees.

    Attributes:
        latents: (B, C, h, w), times the VAE's scaling factor, without noise.
        noise: (B, C, h, w).
        timesteps: (B,), whole numbers.
        encoder_hidden_states: (B, L, D); or (B,), numbers of prompts, where the text encoder is trained.
        weights: (B,), of each sample in the loss.
        pixel_weights: (B, 1, h, w), of each pixel in its sample's loss; None where all count alike.
        perturbation: (B, C, h, w), noise that is added to `noise` in what the model is given; None for none.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    encoder_hidden_states: Tensor
    weights: Tensor
    pixel_weights: Tensor | None = None
    perturbation: Tensor | None = None

    def apply(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """A batch of what a function makes of each tensor."""
        given = {field.name: getattr(self, field.name) for field in fields(Batch)}
        return replace(self, **{name: function(value) for name, value in given.items() if value is not None})

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
    values = (getattr(part, field.name) for part in parts for field in fields(Batch))
    return [value for value in values if value is not None]


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
        names += [stream.examples.file_names[_shown(stream, bucket, position, seed)[0]] for position in positions]
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
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return Batch(**stacked, weights=torch.full((len(samples),), stream.weight / len(samples)))


def join(batches: Sequence[Batch]) -> AnyBatch:
    """One batch of several; where their shapes differ, a `MixedBatch` of them."""
    if len({batch.latents.shape[1:] for batch in batches}) > 1:
        return MixedBatch(tuple(batches))
    if any(batch.pixel_weights is not None for batch in batches):
        batches = [
            batch if batch.pixel_weights is not None else replace(batch, pixel_weights=torch.ones_like(batch.latents[:, :1]))
            for batch in batches
        ]
    given = (name for name, value in vars(batches[0]).items() if value is not None)
    return Batch(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in given})


def _sample(stream: Stream, bucket: str, position: int, draws: Draws) -> dict[str, Tensor]:
    """What a batch has of the sample at one position of a stream, but for its weight."""
    examples = stream.examples
    index, time = _shown(stream, bucket, position, draws.seed)
    shape = examples.posterior(index, 0)[0].shape
    # Everything is drawn whether it is used or not, or by a generator of its own: turning one thing off leaves the others.
    generator = seeded_generator(draws.seed, _sequence(stream, bucket), "sample", position)
    noise = torch.randn(shape, generator=generator)
    posterior_noise = torch.randn(shape, generator=generator)
    shift = torch.randn((shape[0], 1, 1), generator=generator)
    timestep = torch.randint(draws.timesteps.start, draws.timesteps.stop, (), generator=generator)
    flip, drop = torch.rand(2, generator=generator).tolist()
    mirrored = int(draws.random_flip and flip < 0.5)
    mean, std = examples.posterior(index, mirrored)
    latents = mean + std * posterior_noise
    dropped = drop < stream.caption_dropout
    prompt_embeds = examples.empty_prompt_embeds if dropped else examples.prompt_of(index, time)
    config, own = draws.config, (draws.seed, _sequence(stream, bucket))
    if config.timestep_distribution == "logit_normal":
        timestep = logit_normal_timestep(draws, seeded_generator(*own, "timestep", position))
    if config.multires_noise_iterations:
        noise = multires_noise(noise, config, seeded_generator(*own, "multires noise", position))
    sample = {
        "latents": latents * examples.scaling_factor,
        "noise": noise + config.noise_offset * shift,
        "timesteps": timestep,
        "encoder_hidden_states": prompt_embeds,
    }
    if (pixel_weights := examples.weights_of_pixels(index, mirrored)) is not None:
        sample["pixel_weights"] = pixel_weights
    if config.input_perturbation:
        generator = seeded_generator(*own, "input perturbation", position)
        sample["perturbation"] = config.input_perturbation * torch.randn(shape, generator=generator)
    return sample


def logit_normal_timestep(draws: Draws, generator: torch.Generator) -> Tensor:
    """A timestep, how far it is among those that are trained being logit-normal (Esser et al. 2024, equation 19)."""
    config, allowed = draws.config, draws.timesteps
    far = torch.sigmoid(config.logit_mean + config.logit_std * torch.randn((), generator=generator))
    return (allowed.start + far * len(allowed)).long().clamp(max=allowed.stop - 1)


def multires_noise(noise: Tensor, config: NoiseConfig, generator: torch.Generator) -> Tensor:
    """Noise (C, h, w) of unit variance with layers of ever coarser noise in it (pyramid noise).

    As Whitaker made it (https://wandb.ai/johnowhitaker/multires_noise/reports/Multi-Resolution-Noise-for-Diffusion-Model-Training--VmlldzozNjYyOTU2)
    and kohya's trainers make it: layer i is 2^i to 4^i times as coarse, and multires_noise_discount^i times as strong.
    """
    channels, *size = noise.shape
    total = noise
    for layer in range(config.multires_noise_iterations):
        factor = (2 + 2 * float(torch.rand((), generator=generator))) ** layer
        height, width = (max(1, int(side / factor)) for side in size)
        coarse = torch.randn((1, channels, height, width), generator=generator)
        total = total + config.multires_noise_discount**layer * interpolate(coarse, size=size, mode="bilinear")[0]
        if min(height, width) == 1:
            break
    return total / total.std()


def _shown(stream: Stream, bucket: str, position: int, seed: int) -> tuple[int, int]:
    """The number of the image at a position of a bucket's sequence, and the number of its showing, counted from 0.

    An image that is repeated k times has the showings k n to k n + k - 1 in epoch n.
    """
    images = stream.examples.buckets[bucket]
    epoch, place = divmod(position, len(images))
    entry = epoch_order(seed, _sequence(stream, bucket), epoch, len(images))[place]
    index = images[entry]
    return index, epoch * stream.examples.repeats_of(index) + entry - images.index(index)


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


def held_out_batches(examples: Examples, draws: Draws, batch_size: int) -> list[Batch]:
    """Each example at `HELD_OUT_TIMESTEPS` timesteps, evenly spread, with noise that is the same whatever the training's seed.

    The batches weigh as much as they have samples, so that the mean of their losses is the mean over samples.
    """
    plain = replace(
        draws.config,
        timestep_distribution="uniform",
        noise_offset=0.0,
        multires_noise_iterations=0,
        input_perturbation=0.0,
    )
    fixed = replace(draws, seed=HELD_OUT_SEED, random_flip=False, config=plain)
    trained = draws.timesteps
    spread = [trained[(2 * part + 1) * len(trained) // (2 * HELD_OUT_TIMESTEPS)] for part in range(HELD_OUT_TIMESTEPS)]
    parts = []
    for bucket, images in examples.buckets.items():
        whole = make_batch(Stream("held out", examples), range(len(images) * HELD_OUT_TIMESTEPS), fixed, bucket)
        whole = replace(whole, timesteps=torch.tensor(spread).repeat_interleave(len(images)))
        parts += [whole.samples(slice(start, start + batch_size)) for start in range(0, len(whole.timesteps), batch_size)]
    weight = len(parts) / (len(examples) * HELD_OUT_TIMESTEPS)
    return [replace(part, weights=torch.full_like(part.weights, weight)) for part in parts]
