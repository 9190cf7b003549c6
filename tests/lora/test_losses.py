"""The losses against the papers' formulas, written out sample by sample in float64."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from stages.lora.batches import Batch
from stages.lora.losses import denoising_loss, min_snr_weights, signal_to_noise_ratio
from tests.lora.settings import loss_config

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def alphas_cumprod(num_train_timesteps=1000):
    betas = np.linspace(0.00085**0.5, 0.012**0.5, num_train_timesteps) ** 2
    return np.cumprod(1 - betas)


def predict(noisy_latents, timesteps, encoder_hidden_states, return_dict, factor: Any = 0.7):
    """Any function of what a UNet is given will do."""
    assert not return_dict
    return (noisy_latents * factor + timesteps[:, None, None, None] / 1000 + encoder_hidden_states.mean(),)


unet: Any = predict


def make_batch(timesteps, weights):
    torch.manual_seed(0)
    shape = (len(timesteps), 4, 3, 3)
    prompts = torch.randn(len(timesteps), 7, 5)
    return Batch(torch.randn(shape), torch.randn(shape), torch.tensor(timesteps), prompts, torch.tensor(weights))


def reference_loss(batch, prediction_type, snr_gamma):
    """Sum over the samples of weight * min-SNR weight * mean squared error; and its derivative by the UNet's factor."""
    total = gradient = 0.0
    for sample in range(len(batch.timesteps)):
        latents, noise = batch.latents[sample].double().numpy(), batch.noise[sample].double().numpy()
        signal = alphas_cumprod()[batch.timesteps[sample]]
        alpha, sigma = math.sqrt(signal), math.sqrt(1 - signal)
        noisy_latents = alpha * latents + sigma * noise
        pred = 0.7 * noisy_latents + batch.timesteps[sample].item() / 1000 + batch.encoder_hidden_states.double().mean().item()
        target = noise if prediction_type == "epsilon" else alpha * noise - sigma * latents
        weight = batch.weights[sample].item()
        if snr_gamma is not None:
            snr = alpha**2 / sigma**2
            weight *= min(snr, snr_gamma) / (snr if prediction_type == "epsilon" else snr + 1)
        total += weight * np.mean((pred - target) ** 2)
        gradient += weight * np.mean(2 * (pred - target) * noisy_latents)
    return total, gradient


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("snr_gamma", [None, 5.0])
@pytest.mark.parametrize("weights", [[0.25] * 4, [0.5, 0.5, 0.35, 0.35]], ids=["mean", "prior preservation"])
def test_loss_and_gradient_are_those_of_the_papers(prediction_type, snr_gamma, weights):
    batch = make_batch([0, 10, 500, 999], weights)
    noise_scheduler = DDPMScheduler(prediction_type=prediction_type, **BETAS)
    factor = torch.tensor(0.7, requires_grad=True)
    trained: Any = partial(predict, factor=factor)
    loss = denoising_loss(trained, batch, noise_scheduler, loss_config(snr_gamma=snr_gamma))
    (gradient,) = torch.autograd.grad(loss, factor)
    assert (loss.item(), gradient.item()) == pytest.approx(reference_loss(batch, prediction_type, snr_gamma), rel=5e-5)


def test_min_snr_weights_at_both_sides_of_gamma():
    snr = torch.tensor([1.0, 5.0, 20.0])
    torch.testing.assert_close(min_snr_weights(snr, 5.0, "epsilon"), torch.tensor([1.0, 1.0, 0.25]))
    torch.testing.assert_close(min_snr_weights(snr, 5.0, "v_prediction"), torch.tensor([0.5, 5 / 6, 5 / 21]))


def test_zero_terminal_snr_gives_no_nan():
    noise_scheduler = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="epsilon", **BETAS)
    snr = signal_to_noise_ratio(torch.tensor([0.5, 0.0]), torch.tensor([1]))
    assert snr.item() == 0
    assert min_snr_weights(snr, 5.0, "epsilon").item() == 1
    assert min_snr_weights(snr, 5.0, "v_prediction").item() == 0
    assert denoising_loss(unet, make_batch([999], [1.0]), noise_scheduler, loss_config(snr_gamma=5.0)).isfinite()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_pixels_count_as_their_weights_say(prediction_type):
    """The sum over the samples of the weighted mean of the squared errors, by hand."""
    batch = make_batch([10, 500], [0.5, 0.25])
    pixels = torch.zeros(2, 1, 3, 3)
    pixels[0, 0, 1, 2] = 9.0  # of the first sample one pixel alone
    pixels[1] = 1.0
    scheduler: Any = DDPMScheduler(prediction_type=prediction_type, **BETAS)
    found = denoising_loss(unet, replace(batch, pixel_weights=pixels), scheduler, loss_config())
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    target = batch.noise
    if prediction_type == "v_prediction":
        target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
    squares = (predict(noisy, batch.timesteps, batch.encoder_hidden_states, False)[0] - target).square()
    expected = 0.5 * squares[0, :, 1, 2].mean() + 0.25 * squares[1].mean()
    torch.testing.assert_close(found, expected)
