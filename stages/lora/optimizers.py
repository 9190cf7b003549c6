"""Optimizers and learning rate schedules by their names in the settings."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from stages.lora.config import OPTIMIZER_PACKAGES, OptimizerConfig, TextualInversionConfig
from stages.lora.text_encoder import VECTORS


def records(config: OptimizerConfig, scale_gradients: bool) -> bool:
    """Whether a CUDA graph can hold the optimizer's step: it never waits for the device to say what comes next."""
    return config.optimizer == "adamw_fused" or (config.optimizer == "adamw" and not scale_gradients)


def make_optimizer(
    weights: Mapping[str, nn.Parameter], config: OptimizerConfig, capturable: bool = False
) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    Args:
        weights: that it updates, by name; those of a word may have a rate of their own.
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
    return make(_groups(weights, config), **shared, **own[config.optimizer])


def _groups(weights: Mapping[str, nn.Parameter], config: OptimizerConfig) -> list[Any]:
    """The weights, in groups of one learning rate where there are several; the first has the one that the history shows."""
    rate = config.embedding_learning_rate if isinstance(config, TextualInversionConfig) else None
    if rate is None:
        return list(weights.values())
    others = [weight for name, weight in weights.items() if name != VECTORS]
    return [{"params": others}, {"params": [weights[VECTORS]], "lr": rate}]


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
