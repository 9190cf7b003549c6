import math
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler

from stages.lora.adapters import add_lora, load_unet, trained_parameters
from stages.lora.batches import Draws, Examples, Stream, batch_at
from stages.lora.losses import denoising_loss
from stages.lora.training import DivergedError, TrainingState, fit
from tests.comparison.tiny_models import WIDTH, save_tiny_checkpoint
from tests.lora.settings import training_config

DRAWS = Draws(seed=0, num_train_timesteps=1000, random_flip=True, noise_offset=0.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def make_unet(model):
    unet = load_unet(model)
    add_lora(unet, 2, 4.0, ["to_k", "to_q", "to_v", "to_out.0"], "gaussian", seed=0)
    return unet


@pytest.fixture(scope="module")
def stream():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(5, 2, 4, 8, 8, generator=generator)
    prompts = torch.randn(5, 77, WIDTH, generator=generator)
    return Stream("instance", Examples(mean, torch.full_like(mean, 0.1), 1.0, prompts, prompts[0]), caption_dropout=0.1)


def train(model, stream, checkpoint=None, batches=None, dtype=torch.float32, **changes):
    """Train a tiny UNet; the trained weights as one vector, and the history."""
    unet = make_unet(model)
    config = training_config(**{"max_train_steps": 6, "train_batch_size": 2, "logging_steps": 4} | changes)
    loss_fn = partial(denoising_loss, noise_scheduler=DDPMScheduler(), snr_gamma=config.snr_gamma)
    batches = batches or partial(batch_at, [stream], DRAWS, config.train_batch_size)
    history = fit(unet, batches, loss_fn, config, dtype, checkpoint)
    return torch.cat([parameter.detach().flatten() for parameter in trained_parameters(unet).values()]), history


def test_twice_the_same(model, stream):
    (weights, history), (again, again_history) = (train(model, stream) for _ in range(2))
    assert torch.equal(weights, again)
    assert history == again_history
    assert [row.step for row in history] == [4, 6]


def test_loss_falls(model, stream):
    """On one batch, again and again."""
    fixed = batch_at([stream], DRAWS, 5, 0)
    options = {"max_train_steps": 60, "learning_rate": 1e-2, "lr_scheduler": "constant", "logging_steps": 5}
    _, history = train(model, stream, batches=lambda number: fixed, **options)
    assert history[-1].loss < 0.9 * history[0].loss


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_interrupted_run_ends_with_the_same_bits(model, stream, tmp_path, stop):
    """Stopped after any step; a checkpoint every 2 steps, also in the middle of a row of the history."""
    whole, whole_history = train(model, stream, gradient_accumulation_steps=2)

    def batches_until_power_cut(number):
        if number == 2 * stop:
            raise KeyboardInterrupt
        return batch_at([stream], DRAWS, 2, number)

    options = {"checkpoint": tmp_path / "checkpoint.pt", "checkpointing_steps": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        train(model, stream, batches=batches_until_power_cut, **options)
    assert (tmp_path / "checkpoint.pt").exists() == (stop >= 2)
    resumed, resumed_history = train(model, stream, **options)
    assert torch.equal(resumed, whole)
    assert resumed_history == whole_history


def test_accumulated_batches_are_one_large_batch(model, stream):
    large, large_history = train(model, stream, train_batch_size=4)
    small, small_history = train(model, stream, train_batch_size=2, gradient_accumulation_steps=2)
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-5)
    assert small_history[0].loss == pytest.approx(large_history[0].loss, rel=1e-5)


def test_first_step_is_adamws(model, stream):
    """One step by hand, with clipping: m / sqrt(v) of the first step is the sign of the gradient, epsilon apart."""
    unet = make_unet(model)
    loss = denoising_loss(unet, batch_at([stream], DRAWS, 2, 0), DDPMScheduler(), None)
    loss.backward()
    gradients = [parameter.grad for parameter in trained_parameters(unet).values() if parameter.grad is not None]
    gradient = torch.cat([part.flatten() for part in gradients])
    first = torch.cat([parameter.detach().flatten() for parameter in trained_parameters(unet).values()])
    max_grad_norm = gradient.norm().item() / 10
    options = {"max_train_steps": 1, "adam_epsilon": 0.01, "learning_rate": 0.02}
    weights, history = train(model, stream, max_grad_norm=max_grad_norm, **options)
    clipped = gradient / 10
    expected = first * (1 - 0.02 * 0.01) - 0.02 * clipped / (clipped.abs() + 0.01)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    assert history[0].grad_norm == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert history[0].loss == pytest.approx(loss.item(), rel=1e-6)


def test_learning_rate_follows_warm_up_and_cosine(model, stream):
    _, history = train(model, stream, max_train_steps=8, lr_warmup_steps=4, logging_steps=1, learning_rate=1e-3)
    cosine = [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert [row.learning_rate for row in history] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, *cosine])


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_every_schedule_begins_at_the_learning_rate(model, stream, name):
    state = TrainingState(make_unet(model), training_config(lr_scheduler=name, learning_rate=1e-3), scale_gradients=False)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(model, stream, tmp_path):
    def batches(number):
        batch = batch_at([stream], DRAWS, 2, number)
        if number == 4:
            batch.latents[:] = math.nan
        return batch

    with pytest.raises(DivergedError, match="the loss is nan at step 5: try a lower learning_rate"):
        train(model, stream, tmp_path / "checkpoint.pt", batches, max_train_steps=20, checkpointing_steps=3, logging_steps=20)
    state = TrainingState(make_unet(model), training_config(), scale_gradients=False)
    state.load(tmp_path / "checkpoint.pt")
    assert state.step == 3
    assert all(parameter.isfinite().all() for parameter in state.parameters.values())


def test_bfloat16_trains_float32_weights(model, stream):
    weights, history = train(model, stream, dtype=torch.bfloat16)
    assert weights.dtype == torch.float32
    exact = train(model, stream)[1]
    assert history[-1].loss == pytest.approx(exact[-1].loss, rel=0.05)


def test_gradient_checkpointing_changes_nothing(model, stream):
    unet = make_unet(model)
    unet.enable_gradient_checkpointing()
    config = training_config(max_train_steps=2, train_batch_size=2, logging_steps=2)
    loss_fn = partial(denoising_loss, noise_scheduler=DDPMScheduler(), snr_gamma=None)
    history = fit(unet, partial(batch_at, [stream], DRAWS, 2), loss_fn, config)
    assert history == train(model, stream, max_train_steps=2, logging_steps=2)[1]
