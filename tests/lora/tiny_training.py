"""Trainings of tiny UNets, of a few steps on random latents."""

from dataclasses import fields
from functools import partial
from typing import Any

import torch
from diffusers import DDPMScheduler

from stages.lora.adapter_config import AdapterConfig
from stages.lora.adapters import add_adapter, trained_parameters
from stages.lora.batches import Draws, Stream, batch_at
from stages.lora.examples import Examples
from stages.lora.fused import fuse_linear_layers
from stages.lora.loop import fit
from stages.lora.losses import denoising_loss
from stages.lora.tuned_model import cast_frozen, load_unet
from tests.drawing.tiny_models import WIDTH
from tests.lora.settings import adapter_config, make_run, noise_config

DRAWS = Draws(seed=0, num_train_timesteps=1000, random_flip=True, config=noise_config())
ADAPTER_SETTINGS = {field.name for field in fields(AdapterConfig)}


def make_unet(model, **settings):
    unet = load_unet(model)
    config = adapter_config(**settings)
    add_adapter(unet, 2, config, config.target_modules, seed=0)
    return unet


def make_stream():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(5, 2, 4, 8, 8, generator=generator)
    prompts = torch.randn(5, 77, WIDTH, generator=generator)
    names = tuple(f"{number}.png" for number in range(5))
    examples = Examples(mean, torch.full_like(mean, 0.1), 1.0, prompts, prompts[0], names)
    return Stream("instance", examples, caption_dropout=0.1)


def train(model, stream, batches=None, held_out=(), after_step=None, **changes):
    """Train a tiny UNet; the trained weights as one vector, and the history."""
    run = make_run(model, **{"max_train_steps": 6, "train_batch_size": 2, "logging_steps": 4} | changes)
    config, dtype = run.config, torch.float32
    if config.tuned == "full":
        unet: Any = load_unet(model).requires_grad_(True)
    else:
        unet = make_unet(model, **{name: value for name, value in changes.items() if name in ADAPTER_SETTINGS})
        dtype = torch.float32 if run.autocasts else run.dtype
        cast_frozen(unet, run.dtype)
        if dtype != torch.float32:
            fuse_linear_layers(unet, dtype)
    loss_fn = partial(denoising_loss, noise_scheduler=DDPMScheduler(), config=config, dtype=dtype)
    batches = batches or partial(batch_at, [stream], DRAWS, config.train_batch_size)
    history = fit(run, unet, batches, loss_fn, held_out, after_step)
    return torch.cat([parameter.detach().flatten() for parameter in trained_parameters(unet).values()]), history


def batches_until_power_cut(stream, last):
    """Batches of two samples, and a power cut where batch number `last` would be."""

    def batches(number):
        if number == last:
            raise KeyboardInterrupt
        return batch_at([stream], DRAWS, 2, number)

    return batches
