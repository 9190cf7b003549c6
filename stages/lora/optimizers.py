"""Optimizers and learning rate schedules by their names in the settings."""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from stages.lora.config import OPTIMIZER_PACKAGES, OptimizerConfig


def records(config: OptimizerConfig, scale_gradients: bool) -> bool:
    """Whether a CUDA graph can hold the optimizer's step: it never waits for the device to say what comes next."""
    return config.optimizer == "adamw_fused" or (config.optimizer == "adamw" and not scale_gradients)


def make_optimizer(weights: Iterable[nn.Parameter], config: OptimizerConfig, capturable: bool = False) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    Args:
        weights: that it updates.
        config: the settings.
        capturable: make it one whose step a CUDA graph can hold (`records`).

    Raises:
        ValueError: its package is not installed.
    """
    make = _optimizer_class(config.optimizer)
    shared: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    own: dict[str, dict[str, Any]] = {
        "adamw_fused": {"fused": True, "capturable": capturable},
        "adamw": {"capturable": capturable},
        "adamw_8bit": {},
        # As diffusers' scripts have it: with a warm-up, the estimated rate must not grow while the schedule is near 0.
        "prodigy": {"decouple": True, "use_bias_correction": True, "safeguard_warmup": True},
    }
    return make(list(weights), **shared, **own[config.optimizer])


def _optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The class of an optimizer; ValueError if its package is not there."""
    if name not in OPTIMIZER_PACKAGES:
        return torch.optim.AdamW
    try:
        package = import_module(OPTIMIZER_PACKAGES[name])
    except ImportError as error:
        package = OPTIMIZER_PACKAGES[name]
        raise ValueError(f"optimizer: given {name!r}: pip install {package}, or take adamw_fused ({error})") from error
    return package.optim.AdamW8bit if name == "adamw_8bit" else package.Prodigy


def make_lr_scheduler(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule that the settings name, stepped once per optimizer step."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        step_rules=config.lr_step_rules,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )
