"""What a training says before it starts and when it has ended."""

import math
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from stages.encoding.data_warnings import say_problems
from stages.lora.adapters import idle_patterns, trained_parameters
from stages.lora.batches import Examples, Stream
from stages.lora.config import TrainingConfig
from stages.lora.expectations import EXPECTED, WORKING_MEMORY, expected_seconds, kept_bytes
from stages.pipeline.torch_runtime import held_memory

if TYPE_CHECKING:
    from stages.lora.run import Place, Tuned

GRADIENT_BYTES = WEIGHT_BYTES = 4
OPTIMIZER_BYTES = {"adamw_fused": 8, "adamw": 8, "adamw_8bit": 2, "prodigy": 16}
"""What an optimizer remembers of each trained weight."""
STEPS_BEFORE_ESTIMATE = 20
LARGE = 50_000_000
"""Weights of a UNet from which on it is found out what its forward pass keeps; a smaller one's is little beside the process."""


def say_plan(
    tuned: "Tuned", streams: Sequence[Stream], config: TrainingConfig, rank: int, place: "Place", done: int = 0
) -> None:
    """Print what the run is going to do; `done` of its steps were done before it was interrupted."""
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
        f"{WEIGHT_BYTES * trained / 1e6:.2f} MB",
        flush=True,
    )
    if said := describe_loaders(tuned, config):
        print(said, flush=True)
    if config.tuned == "lora":
        say_problems(idle_patterns(tuned.parts["unet"], config))
    if place.device.type in EXPECTED:
        left = config.max_train_steps - done
        passes = left * config.gradient_accumulation_steps
        seconds = expected_seconds(tuned.parts["unet"], batch_shape(streams, config), passes, place.device)
        print(
            f"expected: about {describe_time(seconds)}{f' for the {left} steps left' if done else ''} and "
            f"{expected_memory(tuned, streams, config, place) / 2**30:.2f} GiB of memory; "
            f"the first {STEPS_BEFORE_ESTIMATE} steps will tell better",
            flush=True,
        )


def batch_shape(streams: Sequence[Stream], config: TrainingConfig) -> torch.Size:
    """The shape of the latents of a forward pass, (B, C, h, w); the largest where there are several."""
    count = config.train_batch_size * len(streams) // config.num_processes
    shapes = [_largest(stream.examples) for stream in streams]
    return torch.Size((max(1, count), streams[0].examples.mean.shape[2], *max(shapes, key=math.prod)))


def _largest(examples: Examples) -> tuple[int, ...]:
    """Height and width of the largest latents."""
    if examples.shapes is None:
        return tuple(examples.mean.shape[3:])
    return tuple(max(examples.shapes.tolist(), key=math.prod))


def expected_memory(tuned: "Tuned", streams: Sequence[Stream], config: TrainingConfig, place: "Place") -> int:
    """Bytes that the run needs at its peak, by estimate, this process with all that it holds by now included.

    Loading may have been the peak: it holds the file's weights beside the model's.
    """
    trained = sum(parameter.numel() for parameter in _parameters(tuned.model)[0])
    needed = held_memory(place.device) + trained * (GRADIENT_BYTES + OPTIMIZER_BYTES[config.optimizer])
    unet = tuned.parts["unet"]
    if sum(parameter.numel() for parameter in unet.parameters()) >= LARGE:
        needed += kept_bytes(unet, batch_shape(streams, config), place.device, place.dtype)
    return max(peak_memory(place.device), round(needed * (1 + WORKING_MEMORY)))


def describe_time(seconds: float) -> str:
    """A time in minutes and seconds, or in hours and minutes."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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


def describe_loaders(tuned: "Tuned", config: TrainingConfig) -> str:
    """Who reads the file, where that is not everybody who reads LoRAs; nothing where it is."""
    if config.tuned == "lora" and config.peft_type != "lora":
        kind = {"lokr": "LoKr", "loha": "LoHa"}[config.peft_type]
        return (
            f"diffusers' load_lora_weights refuses {kind}: the file is read by PEFT and by this pipeline, and what export "
            "makes of it by A1111, ComfyUI and InvokeAI"
        )
    if config.use_dora and "text_encoder" in tuned.parts:
        return (
            "diffusers' load_lora_weights leaves out the lengths that DoRA learns on the text encoder and draws other images "
            "without a word: the file is read whole by PEFT and by this pipeline"
        )
    return ""


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
