from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from stages.lora.batches import Draws, Stream, batch_at, epoch_order, held_out_batches, make_batch, tensors_of
from stages.lora.examples import Examples, split_held_out
from tests.lora.settings import noise_config

DRAWS = Draws(seed=3, num_train_timesteps=1000, random_flip=True, config=noise_config())


def make_examples(count=10, std=0.0):
    """Image n has the value n everywhere, its mirror image n + 0.5; its prompt n, the empty one -1."""
    values = torch.arange(count).float().view(-1, 1, 1, 1, 1)
    mean = torch.cat([values, values + 0.5], dim=1).expand(-1, -1, 4, 2, 2)
    prompts = torch.arange(count).float().view(-1, 1, 1).expand(-1, 3, 2)
    names = tuple(f"{number}.png" for number in range(count))
    return Examples(mean, torch.full_like(mean, std), 1.0, prompts, torch.full((3, 2), -1.0), names)


def images_of(batch):
    return batch.latents[:, 0, 0, 0].floor().int().tolist()


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))


def test_a_batch_depends_on_nothing_that_was_drawn_before():
    stream = Stream("instance", make_examples(std=0.1))
    late = batch_at([stream], DRAWS, 4, 17)
    for number in range(5):
        batch_at([stream], DRAWS, 4, number)
    torch.manual_seed(12)
    assert equal(batch_at([stream], DRAWS, 4, 17), late)


def test_half_batches_are_the_halves_of_the_whole_batch():
    stream = Stream("instance", make_examples(std=0.1))
    whole = make_batch(stream, range(8, 12), DRAWS)
    halves = [make_batch(stream, positions, DRAWS) for positions in (range(8, 10), range(10, 12))]
    for name in ("latents", "noise", "timesteps", "encoder_hidden_states"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own():
    stream = Stream("instance", make_examples(count=10))
    shown = [image for number in range(5) for image in images_of(batch_at([stream], DRAWS, 4, number))]
    assert sorted(shown[:10]) == sorted(shown[10:]) == list(range(10))
    assert shown[:10] != shown[10:]
    assert epoch_order(4, "instance", 0, 10) != epoch_order(3, "instance", 0, 10)


def test_prompts_go_with_their_images():
    batch = make_batch(Stream("instance", make_examples()), range(10), DRAWS)
    assert batch.encoder_hidden_states[:, 0, 0].int().tolist() == images_of(batch)


def test_flip_and_caption_dropout_have_their_shares():
    batch = make_batch(Stream("instance", make_examples(), caption_dropout=0.1), range(3000), DRAWS)
    flipped = (batch.latents[:, 0, 0, 0] % 1 == 0.5).float().mean().item()
    dropped = (batch.encoder_hidden_states[:, 0, 0] == -1).float().mean().item()
    assert flipped == pytest.approx(0.5, abs=0.05)
    assert dropped == pytest.approx(0.1, abs=0.03)
    unflipped = make_batch(Stream("instance", make_examples()), range(50), replace(DRAWS, random_flip=False))
    assert (unflipped.latents % 1 == 0).all()
    assert (unflipped.encoder_hidden_states >= 0).all()


def test_noise_and_timesteps_are_unit_normal_and_uniform():
    batch = make_batch(Stream("instance", make_examples()), range(3000), DRAWS)
    assert batch.noise.mean().abs() < 0.02
    assert batch.noise.std().item() == pytest.approx(1, abs=0.02)
    assert batch.timesteps.float().mean().item() == pytest.approx(499.5, abs=20)
    assert batch.timesteps.min() < 10
    assert batch.timesteps.max() > 990


def test_latents_are_samples_of_the_posterior():
    """Mean and spread of the samples of one image are the posterior's: caching it changes no distribution."""
    examples = replace(make_examples(count=1, std=0.25), scaling_factor=2.0)
    batch = make_batch(Stream("instance", examples), range(3000), replace(DRAWS, random_flip=False))
    assert batch.latents.mean().item() == pytest.approx(0.0, abs=0.02)
    assert batch.latents.std().item() == pytest.approx(2 * 0.25, abs=0.01)
    correlation = (batch.latents * batch.noise).mean() / batch.latents.std()
    assert abs(correlation.item()) < 0.03


def test_turning_one_thing_off_leaves_the_others():
    stream = Stream("instance", make_examples(std=0.1))
    one = make_batch(stream, range(8), DRAWS)
    other = make_batch(replace(stream, caption_dropout=0.5), range(8), replace(DRAWS, random_flip=False))
    assert torch.equal(one.noise, other.noise)
    assert torch.equal(one.timesteps, other.timesteps)


def test_noise_offset_shifts_whole_channels():
    stream = Stream("instance", make_examples())
    plain = make_batch(stream, range(8), DRAWS)
    offset = make_batch(stream, range(8), replace(DRAWS, config=noise_config(noise_offset=0.1)))
    shift = offset.noise - plain.noise
    torch.testing.assert_close(shift, shift.mean(dim=(2, 3), keepdim=True).expand_as(shift))
    assert 0.05 < shift[:, :, 0, 0].std() < 0.2


def test_class_images_come_along_with_their_weight():
    streams = [Stream("instance", make_examples(10)), Stream("class", make_examples(7), weight=0.5)]
    batch: Any = batch_at(streams, DRAWS, 4, 0)
    torch.testing.assert_close(batch.weights, torch.tensor([0.25] * 4 + [0.125] * 4))
    assert not torch.equal(batch.noise[:4], batch.noise[4:])


def test_images_are_held_out_by_name_with_their_prompts():
    kept, held = split_held_out(make_examples(5), ["3.png", "1.png", "8.png"])
    assert held is not None
    for part, numbers in ((kept, [0, 2, 4]), (held, [1, 3])):
        assert part.mean[:, 0, 0, 0, 0].int().tolist() == numbers
        assert part.prompt_embeds[:, 0, 0].int().tolist() == numbers
        assert part.file_names == tuple(f"{number}.png" for number in numbers)


def test_where_nothing_is_held_out_all_are_trained_on():
    examples = make_examples(5)
    for names in ([], ["8.png"]):
        kept, held = split_held_out(examples, names)
        assert kept is examples
        assert held is None


def test_holding_out_all_is_refused():
    names = [f"{number}.png" for number in range(5)]
    with pytest.raises(ValueError, match=r"all of 5 images are held out from training \(download\.held_out_images\)"):
        split_held_out(make_examples(5), names)


def test_held_out_batches_show_each_image_at_each_timestep_once():
    """As it is: neither mirrored nor with an offset, and with its own prompt."""
    draws = replace(DRAWS, config=noise_config(noise_offset=0.5))
    batches = held_out_batches(make_examples(3), draws, batch_size=5)
    assert [len(batch.timesteps) for batch in batches] == [5, 5, 2]
    shown = [
        (image, prompt, timestep)
        for batch in batches
        for image, prompt, timestep in zip(
            batch.latents[:, 0, 0, 0].tolist(),
            batch.encoder_hidden_states[:, 0, 0].tolist(),
            batch.timesteps.tolist(),
            strict=True,
        )
    ]
    assert sorted(shown) == [(image, image, timestep) for image in (0.0, 1.0, 2.0) for timestep in (125, 375, 625, 875)]
    plain = held_out_batches(make_examples(3), DRAWS, batch_size=5)
    assert all(torch.equal(one.noise, other.noise) for one, other in zip(batches, plain, strict=True))
    assert sum(batch.weights.sum().item() for batch in batches) == pytest.approx(len(batches))


def test_cached_posterior_has_the_distribution_of_fresh_encoding():
    """Many samples of one image against those of diffusers' own posterior: mean, spread, and shape (Kolmogorov-Smirnov)."""
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(1, 8, 2, 2, generator=generator)
    posterior = DiagonalGaussianDistribution(parameters)
    both = [torch.stack([part[0], part[0].flip(-1)])[None] for part in (posterior.mean, posterior.std)]
    examples = Examples(both[0], both[1], 0.5, torch.zeros(1, 3, 2), torch.zeros(3, 2))
    draws = replace(DRAWS, random_flip=False)
    count = 4000
    cached = make_batch(Stream("instance", examples), range(count), draws).latents
    fresh = torch.cat([posterior.sample(generator) for _ in range(count)]) * 0.5
    spread = 0.5 * posterior.std
    assert ((cached.mean(0) - 0.5 * posterior.mean).abs() / spread < 5 / count**0.5).all()
    assert ((cached.std(0) / spread - 1).abs() < 5 / (2 * count) ** 0.5).all()
    for ours, theirs in zip(cached.flatten(1).T, fresh.flatten(1).T, strict=True):
        # 1.95 sqrt(2 / n) is the distance that two samples of one distribution exceed once in a thousand times.
        assert kolmogorov_smirnov(ours, theirs) < 1.95 * (2 / count) ** 0.5


def kolmogorov_smirnov(one, other):
    """The largest distance between two empirical distribution functions."""
    points = torch.cat([one, other]).sort().values
    shares = [torch.searchsorted(sample.sort().values, points, right=True) / len(sample) for sample in (one, other)]
    return (shares[0] - shares[1]).abs().max().item()


def test_the_statistic_tells_the_posterior_mean_from_samples():
    samples = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    assert kolmogorov_smirnov(samples, 0.5 * samples) > 1.95 * (2 / 4000) ** 0.5
