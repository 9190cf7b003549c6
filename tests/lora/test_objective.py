"""Noise, timesteps and losses against the formulas, by hand or by the law of large numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from stages.lora.batches import Batch, Draws, MixedBatch, Stream, batch_at, held_out_batches, join, make_batch, multires_noise
from stages.lora.examples import Examples
from stages.lora.losses import check_weighting, debiased_weights, denoising_loss, huber_thresholds, signal_to_noise_ratio
from tests.lora.settings import loss_config, noise_config

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
ALPHAS = SCHEDULER.alphas_cumprod


def stream(count=8, side=8) -> Stream:
    mean = torch.zeros(count, 2, 4, side, side)
    return Stream("instance", Examples(mean, mean, 1.0, torch.zeros(count, 1, 1), torch.zeros(1, 1)))


def drawn(**changes) -> Batch:
    return make_batch(stream(), range(4000), Draws(0, 1000, False, noise_config(**changes)))


PLAIN = drawn()


@pytest.mark.parametrize("bounds", [(0, 1), (200, 400), (999, 1000), (0, None)])
def test_timesteps_are_uniform_in_their_range(bounds):
    timesteps = drawn(min_timestep=bounds[0], max_timestep=bounds[1]).timesteps
    first, last = bounds[0], (bounds[1] or 1000) - 1
    assert first <= timesteps.min()
    assert timesteps.max() <= last
    spread = (last - first) / 12**0.5
    assert abs(float(timesteps.float().mean()) - (first + last) / 2) <= 4 * spread / 4000**0.5
    assert abs(float(timesteps.float().std()) - spread) <= 0.03 * spread + 1e-6


def test_timesteps_can_be_logit_normal():
    """Half of them below the median, sigmoid(logit_mean); 84 % below sigmoid(logit_mean + logit_std)."""
    changes = {"timestep_distribution": "logit_normal", "logit_mean": -0.5, "logit_std": 0.7}
    timesteps = drawn(**changes, min_timestep=100, max_timestep=900).timesteps.float()
    for deviations, share in ((0.0, 0.5), (1.0, 0.8413), (-1.0, 0.1587)):
        bound = 100 + 800 * float(torch.sigmoid(torch.tensor(-0.5 + deviations * 0.7)))
        assert float((timesteps < bound).float().mean()) == pytest.approx(share, abs=0.03)


def test_what_the_noise_schedule_has_not_is_refused():
    Draws(0, 1000, False, noise_config(min_timestep=999, max_timestep=1000))
    with pytest.raises(ValueError, match="min_timestep: given 1000: the model's noise schedule has 1000 timesteps"):
        Draws(0, 1000, False, noise_config(min_timestep=1000))
    with pytest.raises(ValueError, match="max_timestep: given 1001: the model's noise schedule has 1000 timesteps"):
        Draws(0, 1000, False, noise_config(max_timestep=1001))
    with pytest.raises(ValueError, match="max_timestep: given 5: must be greater than min_timestep, 5"):
        noise_config(min_timestep=5, max_timestep=5)
    with pytest.raises(ValueError, match="noise_offset: not together with multires_noise_iterations"):
        noise_config(noise_offset=0.1, multires_noise_iterations=6)


@pytest.mark.parametrize(
    "changes",
    [
        {"timestep_distribution": "logit_normal"},
        {"multires_noise_iterations": 6},
        {"input_perturbation": 0.1},
        {"noise_offset": 0.1},
    ],
)
def test_one_thing_leaves_the_others_as_they_were(changes):
    batch = drawn(**changes)
    different = {"timestep_distribution": "timesteps", "multires_noise_iterations": "noise", "noise_offset": "noise"}
    for name in ("latents", "noise", "timesteps", "encoder_hidden_states"):
        changed = different.get(next(iter(changes))) == name
        assert torch.equal(getattr(batch, name), getattr(PLAIN, name)) != changed, name


def test_multires_noise_has_unit_variance_and_is_alike_far_apart():
    noise = drawn(multires_noise_iterations=6, multires_noise_discount=0.8).noise[:500]
    torch.testing.assert_close(noise.flatten(1).std(dim=1), torch.ones(500))

    def likeness(of: torch.Tensor) -> float:
        return float((of[..., :4] * of[..., 4:]).mean())

    assert likeness(PLAIN.noise[:500]) == pytest.approx(0, abs=0.01)
    assert likeness(noise) > 0.1


def test_one_layer_of_multires_noise_is_noise_of_its_own_size_twice():
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = multires_noise(noise, noise_config(multires_noise_iterations=1), torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    torch.rand((), generator=generator)
    total = noise + torch.randn(1, 4, 8, 8, generator=generator)[0]
    torch.testing.assert_close(found, total / total.std())


def test_perturbation_is_in_what_the_model_is_given_and_not_in_what_it_is_to_predict():
    batch = make_batch(stream(), range(3), Draws(0, 1000, False, noise_config(input_perturbation=0.5)))
    assert batch.perturbation is not None
    many: Any = drawn(input_perturbation=0.5).perturbation
    assert float(many[:500].std()) == pytest.approx(0.5, rel=0.02)
    given = []

    def predict(noisy, timesteps, embeds, return_dict):
        given.append(noisy)
        return (batch.noise,)  # the noise without what was added to it

    unet: Any = predict
    assert float(denoising_loss(unet, batch, SCHEDULER, loss_config())) == 0
    added: Any = batch.noise + batch.perturbation
    latents: Any = batch.latents
    timesteps: Any = batch.timesteps
    torch.testing.assert_close(given[0], SCHEDULER.add_noise(latents, added, timesteps))


def test_parts_of_a_batch_keep_what_each_has():
    """A perturbation without weights of pixels stays one, however the batch is divided, joined and moved."""
    whole = make_batch(stream(), range(4), Draws(0, 1000, False, noise_config(input_perturbation=0.5)))
    for batch in (whole.samples(slice(0, 2)), whole.to(torch.device("cpu")), join([whole, whole])):
        assert isinstance(batch, Batch)
        assert batch.pixel_weights is None
        assert batch.perturbation is not None
        assert batch.perturbation.shape == batch.noise.shape
    mixed = join([whole, make_batch(stream(side=4), range(4), Draws(0, 1000, False, noise_config()))])
    assert isinstance(mixed, MixedBatch)
    assert [part.perturbation is None for part in mixed.parts] == [False, True]


def test_held_out_images_are_looked_at_in_plain_noise_over_the_timesteps_that_are_trained():
    changes = {"multires_noise_iterations": 6, "input_perturbation": 0.3, "timestep_distribution": "logit_normal"}
    plain, changed = (
        held_out_batches(stream(2).examples, Draws(0, 1000, False, noise_config(**each)), 8)[0] for each in ({}, changes)
    )
    assert changed.perturbation is None
    assert torch.equal(plain.noise, changed.noise)
    assert torch.equal(plain.timesteps, changed.timesteps)
    low = held_out_batches(stream(1).examples, Draws(0, 1000, False, noise_config(min_timestep=200, max_timestep=600)), 8)[0]
    assert low.timesteps.tolist() == [250, 350, 450, 550]


def batch_of(difference: float, timestep: int) -> Batch:
    one = torch.full((1, 1, 1, 1), difference)
    return Batch(torch.zeros(1, 1, 1, 1), one, torch.tensor([timestep]), torch.zeros(1, 1, 1), torch.ones(1))


def loss_of(difference: float, timestep: int, **changes) -> float:
    """Where the model predicts 0 and the noise is the difference."""
    unet: Any = lambda noisy, timesteps, embeds, return_dict: (torch.zeros_like(noisy),)  # noqa: E731
    return float(denoising_loss(unet, batch_of(difference, timestep), SCHEDULER, loss_config(**changes)))


def test_pseudo_huber_losses_by_hand():
    """With c = 0.5 and a difference of 1.2: sqrt(1.44 + 0.25) = 1.3."""
    settings = {"huber_schedule": "constant", "huber_c": 0.5}
    assert loss_of(1.2, 0, loss_type="huber", **settings) == pytest.approx(2 * 0.5 * (1.3 - 0.5))
    assert loss_of(1.2, 0, loss_type="smooth_l1", **settings) == pytest.approx(2 * (1.3 - 0.5))
    assert loss_of(1.2, 0, loss_type="l2", **settings) == pytest.approx(1.44)
    assert loss_of(0.001, 0, loss_type="huber", **settings) == pytest.approx(1e-6, rel=1e-4)  # the square


def test_the_threshold_of_the_pseudo_huber_losses_goes_from_one_to_c():
    timesteps = torch.tensor([0, 500, 999])
    config = loss_config(huber_c=0.1)
    assert huber_thresholds(replace(config, huber_schedule="constant"), timesteps, ALPHAS).tolist() == pytest.approx([0.1] * 3)
    exponential = huber_thresholds(replace(config, huber_schedule="exponential"), timesteps, ALPHAS)
    assert exponential.tolist() == pytest.approx([1.0, 0.1**0.5, 0.1**0.999])
    sigmas = ((1 - ALPHAS) / ALPHAS).sqrt()[timesteps]
    by_noise = huber_thresholds(replace(config, huber_schedule="snr"), timesteps, ALPHAS)
    torch.testing.assert_close(by_noise, 0.9 / (1 + sigmas) ** 2 + 0.1)
    ends = huber_thresholds(replace(config, huber_schedule="snr"), torch.tensor([1]), torch.tensor([0.5, 0.0]))
    assert ends.tolist() == pytest.approx([0.1])


@pytest.mark.parametrize("timestep", [0, 10, 500, 999])
def test_debiased_estimation_is_one_loss_for_both_predictions(timestep):
    """For the same guess of the image, epsilon's error and v's weigh the same, and epsilon's as 1 / sqrt(SNR)."""
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(timestep)).unbind(0)
    guess = latents + 0.1
    alpha = ALPHAS[timestep].sqrt().double()
    sigma = (1 - alpha**2).sqrt()
    noisy = alpha * latents.double() + sigma * noise.double()
    predicted = {"epsilon": (noisy - alpha * guess) / sigma}
    predicted["v_prediction"] = alpha * predicted["epsilon"] - sigma * guess
    batch = Batch(latents, noise, torch.tensor([timestep]), torch.zeros(1, 1, 1), torch.ones(1))
    found = {}
    for prediction_type, answer in predicted.items():
        scheduler: Any = DDPMScheduler.from_config(SCHEDULER.config, prediction_type=prediction_type)
        unet: Any = lambda *_, answer=answer, **__: (answer.float(),)  # noqa: E731
        found[prediction_type] = float(denoising_loss(unet, batch, scheduler, loss_config(debiased_estimation=True)))
    assert found["epsilon"] == pytest.approx(found["v_prediction"], rel=2e-3)
    assert found["epsilon"] == pytest.approx(float((alpha / sigma) ** 2 * 0.01 / (alpha / sigma)), rel=2e-3)


def test_weights_that_would_be_infinite_are_refused_beforehand():
    config = loss_config(debiased_estimation=True)
    ends: Any = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="epsilon")
    with pytest.raises(ValueError, match=r"debiased_estimation: given True: the model predicts epsilon, and its noise"):
        check_weighting(config, ends)
    check_weighting(config, SCHEDULER)
    check_weighting(loss_config(snr_gamma=5.0), ends)
    v: Any = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    check_weighting(config, v)
    assert debiased_weights(signal_to_noise_ratio(v.alphas_cumprod, torch.tensor([999])), "v_prediction").tolist() == [0.0]
    with pytest.raises(ValueError, match="debiased_estimation: given True: not together with snr_gamma"):
        loss_config(debiased_estimation=True, snr_gamma=5.0)


def test_a_resumed_run_draws_the_same_noise():
    draws = Draws(3, 1000, True, noise_config(multires_noise_iterations=4, input_perturbation=0.1))
    late = batch_at([stream()], draws, 2, 9)
    for number in range(3):
        batch_at([stream()], draws, 2, number)
    again = batch_at([stream()], draws, 2, 9)
    assert isinstance(late, Batch)
    assert isinstance(again, Batch)
    assert torch.equal(late.noise, again.noise)
