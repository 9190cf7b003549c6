import importlib.util
import math
import random
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from stages.lora.adapters import trained_parameters
from stages.lora.batches import Stream, batch_at, held_out_batches
from stages.lora.config import OPTIMIZER_PACKAGES
from stages.lora.examples import split_held_out
from stages.lora.loop import DivergedError, TrainingState, fit
from stages.lora.losses import denoising_loss
from stages.lora.optimizers import make_lr_scheduler, make_optimizer
from stages.lora.tuned_model import load_unet
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.settings import loss_config, make_run, training_config
from tests.lora.tiny_training import DRAWS, batches_until_power_cut, make_stream, make_unet, train

HELD_OUT = ("1.png", "3.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def stream():
    return make_stream()


def test_twice_the_same(model, stream):
    (weights, history), (again, again_history) = (train(model, stream) for _ in range(2))
    assert torch.equal(weights, again)
    assert history == again_history
    assert [row.step for row in history] == [1, 2, 3, 4, 5, 6]


def test_loss_falls(model, stream):
    """On one batch, again and again."""
    fixed = batch_at([stream], DRAWS, 5, 0)
    options = {"max_train_steps": 60, "learning_rate": 1e-2, "lr_scheduler": "constant"}
    _, history = train(model, stream, batches=lambda number: fixed, **options)
    assert history[-1].loss < 0.9 * history[4].loss


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_interrupted_run_ends_with_the_same_bits(model, stream, tmp_path, stop):
    """Stopped after any step; a checkpoint every 2 steps, also between two looks at the loss."""
    whole, whole_history = train(model, stream, gradient_accumulation_steps=2)
    options = {"folder": tmp_path, "checkpointing_steps": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        train(model, stream, batches=batches_until_power_cut(stream, 2 * stop), **options)
    assert (tmp_path / "checkpoint.pt").exists() == (stop >= 2)
    resumed, resumed_history = train(model, stream, **options)
    assert torch.equal(resumed, whole)
    assert resumed_history == whole_history


RUNS = {
    "dropout": {"lora_dropout": 0.3},
    "dora": {"use_dora": True},
    "loha": {"peft_type": "loha"},
    "pissa": {"init_lora_weights": "pissa"},
    "all weights": {"tuned": "full", "learning_rate": 1e-4},
    "several passes": {"optimizer": "adamw", "lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 2, "lr_warmup_steps": 2},
    "steps": {"lr_scheduler": "piecewise_constant", "lr_step_rules": "1:3,0.1:5,0.01"},
}


@pytest.mark.parametrize("kind", RUNS)
def test_killed_at_random_moments_it_ends_with_the_same_bits(model, stream, tmp_path, kind):
    """Twice, in any forward pass, with held-out images on the way."""
    kept, held = split_held_out(stream.examples, HELD_OUT)
    assert held is not None
    stream = Stream("instance", kept)
    options = RUNS[kind] | {"gradient_accumulation_steps": 2, "held_out_steps": 3}
    options |= {"held_out": held_out_batches(held, DRAWS, 3)}
    whole, whole_history = train(model, stream, **options)
    options |= {"folder": tmp_path, "checkpointing_steps": 1}
    for last in sorted(random.Random(kind).sample(range(2, 12), 2)):
        with pytest.raises(KeyboardInterrupt):
            train(model, stream, batches=batches_until_power_cut(stream, last), **options)
    resumed, resumed_history = train(model, stream, **options)
    assert torch.equal(resumed, whole)
    assert resumed_history == whole_history


def test_dropout_is_drawn_anew_at_each_pass(model, stream):
    """The same batch and weights, another loss; the same seed, the same losses."""
    fixed = batch_at([stream], DRAWS, 5, 0)
    run = make_run(lora_dropout=0.5, learning_rate=1e-12, max_train_steps=3)

    def losses():
        unet = make_unet(model, lora_dropout=0.5)
        for parameter in trained_parameters(unet).values():
            parameter.data += 0.1
        loss_fn = partial(denoising_loss, noise_scheduler=DDPMScheduler(), config=loss_config())
        return [row.loss for row in fit(run, unet, lambda number: fixed, loss_fn)]

    assert len(set(losses())) == 3
    assert losses() == losses()


def test_accumulated_batches_are_one_large_batch(model, stream):
    large, large_history = train(model, stream, train_batch_size=4)
    small, small_history = train(model, stream, train_batch_size=2, gradient_accumulation_steps=2)
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-5)
    assert small_history[0].loss == pytest.approx(large_history[0].loss, rel=1e-5)


def test_first_step_is_adamws(model, stream):
    """One step by hand, with clipping: m / sqrt(v) of the first step is the sign of the gradient, epsilon apart."""
    unet = make_unet(model)
    loss = denoising_loss(unet, batch_at([stream], DRAWS, 2, 0), DDPMScheduler(), loss_config())
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


SCHEDULES = ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "piecewise_constant"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_where_it_can(name):
    warms_up = name not in ("constant", "piecewise_constant")
    changes: dict[str, Any] = {"lr_step_rules": "1:3,0.5"} if name == "piecewise_constant" else {}
    changes |= {"lr_warmup_steps": 2} if warms_up else {}
    config = training_config(lr_scheduler=name, learning_rate=1e-3, max_train_steps=8, **changes)
    optimizer = make_optimizer(torch.nn.Linear(1, 1), config)
    lr_scheduler = make_lr_scheduler(optimizer, config)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        lr_scheduler.step()
    assert rates[:3] == pytest.approx([0, 5e-4, 1e-3] if warms_up else [1e-3] * 3)
    falls = name not in ("constant", "constant_with_warmup")
    assert (rates[-1] < 1e-3) == falls


@pytest.mark.parametrize("optimizer", OPTIMIZER_PACKAGES)
def test_optimizer_without_its_package_is_one_line(optimizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, OPTIMIZER_PACKAGES[optimizer], None)
    with pytest.raises(ValueError, match=f"optimizer: given '{optimizer}': pip install {OPTIMIZER_PACKAGES[optimizer]}"):
        make_optimizer(torch.nn.Linear(1, 1), training_config(optimizer=optimizer))


@pytest.mark.parametrize("optimizer", OPTIMIZER_PACKAGES)
def test_optimizer_of_another_package_trains_and_resumes(model, stream, tmp_path, optimizer):
    if importlib.util.find_spec(OPTIMIZER_PACKAGES[optimizer]) is None:
        pytest.skip(f"{OPTIMIZER_PACKAGES[optimizer]} is not installed")
    options = {"optimizer": optimizer, "learning_rate": 1.0 if optimizer == "prodigy" else 1e-2}
    whole, history = train(model, stream, **options)
    assert history[0].loss != history[-1].loss
    options |= {"folder": tmp_path, "checkpointing_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        train(model, stream, batches=batches_until_power_cut(stream, 5), **options)
    assert torch.equal(train(model, stream, **options)[0], whole)


def test_one_pass_and_several_are_the_same_optimizer(model, stream):
    fused, several = (train(model, stream, optimizer=name)[0] for name in ("adamw_fused", "adamw"))
    torch.testing.assert_close(fused, several, rtol=1e-4, atol=1e-6)


def test_full_fine_tuning_trains_every_weight(model, stream):
    first = torch.cat([parameter.flatten() for parameter in load_unet(model).parameters()])
    weights, history = train(model, stream, tuned="full", learning_rate=1e-3)
    assert len(weights) == len(first)
    assert (weights != first).float().mean() > 0.95
    assert history[-1].grad_norm > 0


def test_held_out_loss_is_that_of_the_definition(model, stream):
    """Measured before anything is learnt: the mean over images and timesteps, with noise that stays the same."""
    kept, held = split_held_out(stream.examples, HELD_OUT)
    assert held is not None
    held_out = held_out_batches(held, DRAWS, 3)
    assert sum(len(batch.timesteps) for batch in held_out) == 2 * 4
    assert sorted({timestep for batch in held_out for timestep in batch.timesteps.tolist()}) == [125, 375, 625, 875]
    options = {"held_out": held_out, "held_out_steps": 2, "max_train_steps": 3, "learning_rate": 1e-12}
    _, history = train(model, Stream("instance", kept), **options)
    assert [row.step for row in history if row.held_out_loss is not None] == [2, 3]
    unet, squares = load_unet(model), []
    for batch in held_out:
        noisy_latents = DDPMScheduler().add_noise(batch.latents, batch.noise, batch.timesteps)  # pyright: ignore
        model_pred = unet(noisy_latents, batch.timesteps, batch.encoder_hidden_states, return_dict=False)[0]
        squares.append((model_pred - batch.noise).square().mean(dim=(1, 2, 3)))
    expected = torch.cat(squares).mean().item()
    assert [row.held_out_loss for row in history if row.held_out_loss is not None] == pytest.approx([expected] * 2, rel=1e-5)


def test_looking_at_held_out_images_changes_nothing(model, stream):
    held_out = held_out_batches(stream.examples, DRAWS, 3)
    options = {"lora_dropout": 0.3, "held_out_steps": 1}
    assert torch.equal(train(model, stream, held_out=held_out, **options)[0], train(model, stream, **options)[0])


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"preview_prompts": ["a"], "preview_steps": 3}, [3, 6]),
        ({"keep_every": 2}, [2, 4]),
        ({"preview_prompts": ["a"], "preview_steps": 3, "keep_every": 2}, [2, 3, 4, 6]),
        ({"preview_prompts": ["a"], "preview_steps": 2, "keep_every": 2}, [2, 4, 6]),
        ({}, []),
    ],
)
def test_after_a_step_it_is_said_where_something_is_drawn_or_kept(model, stream, settings, steps):
    """Once a step, though both may fall on it, and the weights learnt are the same."""
    said = []
    weights, history = train(model, stream, after_step=said.append, **settings)
    assert said == steps
    plain, plain_history = train(model, stream)
    assert torch.equal(weights, plain)
    assert history == plain_history


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(model, stream, tmp_path):
    def batches(number):
        batch: Any = batch_at([stream], DRAWS, 2, number)
        if number == 4:
            batch.latents[:] = math.nan
        return batch

    with pytest.raises(DivergedError, match="the loss is nan at step 5: try a lower learning_rate") as error:
        train(model, stream, batches, folder=tmp_path, max_train_steps=20, checkpointing_steps=3, logging_steps=20)
    assert error.value.step == 5
    state = TrainingState(make_unet(model), training_config(), scale_gradients=False)
    state.load(tmp_path / "checkpoint.pt")
    assert state.step == 3
    assert all(parameter.isfinite().all() for parameter in state.parameters.values())


def test_loss_beyond_all_bounds_stops(model, stream):
    def batches(number):
        batch: Any = batch_at([stream], DRAWS, 2, number)
        batch.noise[:] *= 100 if number == 2 else 1
        return batch

    with pytest.raises(DivergedError, match=r"the loss is \d+(\.\d+)? at step 3"):
        train(model, stream, batches=batches)


def test_bfloat16_trains_float32_weights(model, stream):
    weights, history = train(model, stream, dtype=torch.bfloat16)
    assert weights.dtype == torch.float32
    exact = train(model, stream)[1]
    assert history[-1].loss == pytest.approx(exact[-1].loss, rel=0.05)


def test_gradient_checkpointing_changes_nothing(model, stream):
    unet = make_unet(model)
    unet.enable_gradient_checkpointing()
    run = make_run(max_train_steps=2, train_batch_size=2)
    loss_fn = partial(denoising_loss, noise_scheduler=DDPMScheduler(), config=loss_config())
    history = fit(run, unet, partial(batch_at, [stream], DRAWS, 2), loss_fn)
    assert history == train(model, stream, max_train_steps=2)[1]
