"""From encoded images and a model to a trained LoRA file: what the two training stages have in common."""

import csv
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from stages.lora.adapters import LORA_FILE, add_lora, cast_frozen, load_unet, trained_parameters, write_lora
from stages.lora.batches import Draws, Examples, Stream, batch_at
from stages.lora.losses import denoising_loss
from stages.lora.settings import TrainingConfig
from stages.lora.training import HistoryRow, fit
from stages.pipeline.outputs import atomic_directory

HISTORY_FILE = "history.csv"


@dataclass(frozen=True)
class Place:
    """Where to compute: the device, the dtype of frozen weights and activations, and the file for checkpoints."""

    device: torch.device
    dtype: torch.dtype
    checkpoint: Path | None


def tune(model: Path, streams: Sequence[Stream], config: TrainingConfig, rank: int, place: Place, out: Path) -> None:
    """Train a LoRA on the UNet of a model and write its file and the history of its training to the directory `out`.

    Only the UNet is loaded: images and prompts come encoded. The first stream's images count the epochs.

    Raises:
        ValueError: the examples do not fit the UNet, a target is not there, or training diverged.
    """
    noise_scheduler = load_noise_scheduler(model)
    unet: Any = load_unet(model)
    for stream in streams:
        check_examples(unet, stream.examples)
    add_lora(unet, rank, config.lora_alpha, config.target_modules, config.init_lora_weights, config.seed)
    cast_frozen(unet, place.dtype)
    unet.to(place.device, memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    draws = Draws(
        seed=config.seed,
        num_train_timesteps=noise_scheduler.config["num_train_timesteps"],
        random_flip=config.random_flip,
        noise_offset=config.noise_offset,
    )
    say_plan(unet, streams, config, rank)
    started = time.perf_counter()
    history = fit(
        unet,
        partial(batch_at, streams, draws, config.train_batch_size),
        partial(denoising_loss, noise_scheduler=noise_scheduler, snr_gamma=config.snr_gamma),
        config,
        place.dtype,
        place.checkpoint,
    )
    seconds = time.perf_counter() - started
    with atomic_directory(out) as folder:
        write_lora(unet, folder / LORA_FILE)
        write_history(history, config.effective_batch_size / len(streams[0].examples), folder / HISTORY_FILE)
    say_summary(out / LORA_FILE, config, seconds, place.device)


def load_noise_scheduler(model: Path) -> DDPMScheduler:
    """Load the noise schedule of a model in diffusers layout, whichever sampler it is stored for.

    Raises:
        ValueError: the model predicts something that the loss is not written for.
    """
    noise_scheduler: Any = DDPMScheduler.from_pretrained(model, subfolder="scheduler", local_files_only=True)
    prediction_type = noise_scheduler.config["prediction_type"]
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"{model / 'scheduler'}: prediction_type is {prediction_type}; only epsilon and v_prediction are trained"
        )
    return noise_scheduler


def check_examples(unet: UNet2DConditionModel, examples: Examples) -> None:
    """Refuse examples that were encoded for another kind of model.

    Raises:
        ValueError: the latents or the embeddings have another width than the UNet takes.
    """
    channels, width = examples.mean.shape[2], examples.prompt_embeds.shape[-1]
    if channels != unet.config["in_channels"]:
        raise ValueError(f"the latents have {channels} channels, the UNet takes {unet.config['in_channels']}: take its own VAE")
    if width != unet.config["cross_attention_dim"]:
        raise ValueError(
            f"the prompts are embedded in {width} numbers, the UNet takes {unet.config['cross_attention_dim']}: "
            "take the text encoder of the same model"
        )


def write_history(history: Sequence[HistoryRow], epochs_per_step: float, path: Path) -> None:
    """Write history.csv: step, epoch, loss, learning_rate, grad_norm."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "epoch", "loss", "learning_rate", "grad_norm"))
        for row in history:
            numbers = (row.step * epochs_per_step, row.loss, row.learning_rate, row.grad_norm)
            writer.writerow((row.step, *(f"{number:.6g}" for number in numbers)))


def say_plan(unet: UNet2DConditionModel, streams: Sequence[Stream], config: TrainingConfig, rank: int) -> None:
    """Print what the run is going to do."""
    images = len(streams[0].examples)
    steps_per_epoch = images / config.effective_batch_size
    trained = sum(parameter.numel() for parameter in trained_parameters(unet).values())
    total = sum(parameter.numel() for parameter in unet.parameters())
    lora_alpha = unet.peft_config["default"].lora_alpha
    prior = f" and {len(streams[1].examples)} class images" if len(streams) > 1 else ""
    print(
        f"{images} images{prior}, {config.effective_batch_size} a step: {steps_per_epoch:g} steps an epoch, "
        f"{config.max_train_steps} steps are {config.max_train_steps / steps_per_epoch:.3g} epochs\n"
        f"LoRA of rank {rank}, alpha {lora_alpha:g}: {trained:,} of {total:,} weights are trained "
        f"({trained / total:.2%}); the file will have about {4 * trained / 1e6:.2f} MB",
        flush=True,
    )


def say_summary(lora: Path, config: TrainingConfig, seconds: float, device: torch.device) -> None:
    """Print size, pace and memory of a finished run."""
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    pace = config.max_train_steps * config.effective_batch_size / seconds
    print(
        f"{lora}: {lora.stat().st_size / 1e6:.2f} MB; {seconds:.1f} s of training, {pace:.1f} images/s, "
        f"peak memory {memory / 2**30:.2f} GiB",
        flush=True,
    )
