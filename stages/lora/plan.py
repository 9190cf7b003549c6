"""What a training says before it starts and when it has ended."""

import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from stages.lora.adapters import trained_parameters
from stages.lora.batches import Stream
from stages.lora.settings import TrainingConfig

if TYPE_CHECKING:
    from stages.lora.tuning import Tuned

GRADIENT_BYTES = WEIGHT_BYTES = 4
OPTIMIZER_BYTES = {"adamw_fused": 8, "adamw": 8, "adamw_8bit": 2, "prodigy": 16}
"""What an optimizer remembers of each trained weight."""


def say_plan(tuned: "Tuned", streams: Sequence[Stream], config: TrainingConfig, rank: int) -> None:
    """Print what the run is going to do."""
    images = len(streams[0].examples)
    steps_per_epoch = images / config.effective_batch_size
    epochs = config.max_train_steps / steps_per_epoch
    trained, total = (sum(parameter.numel() for parameter in parameters) for parameters in _parameters(tuned.model))
    prior = f" and {len(streams[1].examples)} class images" if len(streams) > 1 else ""
    held_out = f", {config.validation_images} more are held out" if config.validation_images else ""
    print(
        f"{images} images{prior}, {config.effective_batch_size} a step: {steps_per_epoch:g} steps an epoch, "
        f"{config.max_train_steps} steps are {epochs:.3g} epochs: "
        f"each image is seen about {max(1, round(epochs))} times{held_out}\n"
        f"{describe_adapter(tuned, config, rank)}: {trained:,} of {total:,} weights are trained "
        f"({trained / total:.2%}); {'their' if config.tuned == 'full' else 'the'} file will have about "
        f"{WEIGHT_BYTES * trained / 1e6:.2f} MB\n"
        f"{least_memory(tuned.model, config) / 2**30:.2f} GiB for weights, gradients and optimizer, and on top of that what a "
        "forward pass keeps for the backward one; the first 20 steps show how much, and how long it all takes",
        flush=True,
    )


def least_memory(model: nn.Module, config: TrainingConfig) -> int:
    """Bytes of the weights, of the trained ones' gradients, and of what the optimizer remembers of them."""
    trained, total = _parameters(model)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in total)
    each = GRADIENT_BYTES + OPTIMIZER_BYTES[config.optimizer]
    return weights + each * sum(parameter.numel() for parameter in trained)


def check_disk(checkpoint: Path | None, model: nn.Module, config: TrainingConfig) -> None:
    """Refuse a run whose checkpoints and result would fill the disk.

    A checkpoint replaces the one before when it is written whole, so there are two for a moment.

    Raises:
        OSError: there is too little room where the checkpoint will be.
    """
    if checkpoint is None:
        return
    trained = sum(parameter.numel() for parameter in _parameters(model)[0])
    checkpoints = 2 if config.checkpointing_steps < config.max_train_steps else 0
    needed = trained * (checkpoints * (WEIGHT_BYTES + OPTIMIZER_BYTES[config.optimizer]) + WEIGHT_BYTES)
    free = shutil.disk_usage(checkpoint.parent).free
    if needed > free:
        raise OSError(
            f"{checkpoint.parent}: {needed / 1e9:.2f} GB are needed for {checkpoints} checkpoints and the result, and "
            f"{free / 1e9:.2f} GB are free: make room, or set checkpointing_steps to {config.max_train_steps} for none"
        )


def describe_adapter(tuned: "Tuned", config: TrainingConfig, rank: int) -> str:
    """What is trained, in words."""
    if config.tuned == "full":
        return "full fine-tuning"
    kind = {"lora": "LoRA", "lokr": "LoKr", "loha": "LoHa"}[config.peft_type]
    kind = "DoRA" if config.use_dora else f"rs{kind}" if config.use_rslora else kind
    lora_alpha = rank if config.lora_alpha == "rank" else config.lora_alpha
    return f"{kind} of rank {rank}, alpha {lora_alpha:g}, on {' and '.join(tuned.parts)}"


def say_summary(lora: Path, config: TrainingConfig, seconds: float, device: torch.device) -> None:
    """Print size, pace and memory of a finished run."""
    pace = config.max_train_steps * config.effective_batch_size / seconds
    print(
        f"{lora}: {lora.stat().st_size / 1e6:.2f} MB; {seconds:.1f} s of training, {pace:.1f} images/s, "
        f"peak memory {peak_memory(device) / 2**30:.2f} GiB",
        flush=True,
    )


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process held so far: on the GPU, or in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained ones, and all."""
    return list(trained_parameters(model).values()), list(model.parameters())
