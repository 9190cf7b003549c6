"""Optimizers and learning rate schedules by their names in the settings."""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from stages.checkpoints.keys.blocks import block_names
from stages.checkpoints.keys.key_maps import unet_specs
from stages.lora.adapters import trained_parameters
from stages.lora.config import OPTIMIZER_BYTES, OPTIMIZER_PACKAGES, OptimizerConfig, TextualInversionConfig
from stages.lora.text_encoder import VECTORS, UNetWithTextEncoder


def records(config: OptimizerConfig, scale_gradients: bool) -> bool:
    """Whether a CUDA graph can hold the optimizer's step: it never waits for the device to say what comes next."""
    return config.optimizer == "adamw_fused" or (config.optimizer == "adamw" and not scale_gradients)


def make_optimizer(model: nn.Module, config: OptimizerConfig, capturable: bool = False) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    Args:
        model: whose trained weights it updates; blocks, a LoRA's second factors and words may have rates of their own.
        config: the settings.
        capturable: make it one whose step a CUDA graph can hold (`records`).

    Raises:
        ValueError: its package is not installed, it refuses its arguments, or a block that the settings name is not there.
    """
    make = _optimizer_class(config.optimizer)
    if config.optimizer not in OPTIMIZER_BYTES:
        return _other_optimizer(make, _groups(model, config), config)
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
    return make(_groups(model, config), **shared, **own[config.optimizer])


def _other_optimizer(make: Callable[..., Any], groups: list[Any], config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimizer that the settings name by its import path."""
    try:
        optimizer = make(groups, lr=config.learning_rate, **config.optimizer_args)
    except (AssertionError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"optimizer_args: {config.optimizer} refuses {config.optimizer_args}: {said}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer: given {config.optimizer!r}: it is no torch.optim.Optimizer")
    return optimizer


def _groups(model: nn.Module, config: OptimizerConfig) -> list[Any]:
    """The weights, in groups of one learning rate where there are several; the first has the one that the history shows."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, rate in learning_rates(model, config).items():
        groups.setdefault(rate, []).append(model.get_parameter(name))
    if set(groups) == {config.learning_rate}:
        return groups[config.learning_rate]
    first = sorted(groups, key=lambda rate: rate != config.learning_rate)
    return [{"params": groups[rate], "lr": rate} for rate in first]


def learning_rates(model: nn.Module, config: OptimizerConfig) -> dict[str, float]:
    """The highest learning rate of each trained weight, by its name.

    Raises:
        ValueError: a block that `block_lr` names is not there, or has no weight that is trained.
    """
    of_word = config.embedding_learning_rate if isinstance(config, TextualInversionConfig) else None
    names = list(trained_parameters(model))
    blocks = _blocks(model, names) if config.block_lr else {}
    if missing := sorted(config.block_lr.keys() - set(blocks.values())):
        there = ", ".join(sorted({block for block in blocks.values() if block}))
        raise ValueError(f"block_lr: {missing[0]} has no weights that are trained; those that have: {there}")
    rates = {}
    for name in names:
        ratio = config.loraplus_lr_ratio if config.loraplus_lr_ratio and ".lora_B." in name else 1.0
        rates[name] = config.learning_rate * ratio * config.block_lr.get(blocks.get(name, ""), 1.0)
        if name == VECTORS and of_word is not None:
            rates[name] = of_word
    return rates


def _blocks(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The block of each of these weights: of the UNet, "text_encoder", or "" for a word."""
    unet: Any = model.unet if isinstance(model, UNetWithTextEncoder) else model
    layers = {name.rpartition(".")[0]: block for name, block in block_names(unet_specs(unet.config)).items()}

    def block_of(name: str) -> str:
        if name.startswith("text_encoder."):
            return "text_encoder"
        path = name.removeprefix("unet.")
        while path and path not in layers:
            path = path.rpartition(".")[0]
        return layers.get(path, "")

    return {name: block_of(name) for name in names}


def _optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The class of an optimizer; ValueError if its package is not there."""
    if name not in OPTIMIZER_BYTES:
        module, _, attribute = name.rpartition(".")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            package = module.partition(".")[0]
            raise ValueError(f"optimizer: given {name!r}: {error}; is {package} installed, and is that its name?") from error
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
