"""From encoded images and a model to a trained LoRA file: what the two training stages have in common."""

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.checkpoints.file_names import LORA_FILE, UNET_FILE
from stages.checkpoints.files.tensors import sha256
from stages.lora.adapters import add_adapter, cast_frozen, load_unet, move, write_lora
from stages.lora.batches import Batch, Draws, Examples, Stream, batch_at, hold_out, names_at, validation_batches
from stages.lora.compiling import compile_unet
from stages.lora.config import TrainingConfig
from stages.lora.estimates import check_disk, say_plan, say_summary
from stages.lora.loop import DivergedError, HistoryRow, fit, steps_done
from stages.lora.losses import denoising_loss
from stages.lora.previews import SAMPLES, Sampler, SampleSize, prompt_embedder
from stages.lora.processes import process_number, refuse_torchrun, run_processes
from stages.lora.text_encoder import TARGET_MODULES, TrainedPrompts, with_text_encoder
from stages.pipeline.outputs import atomic_directory
from stages.pipeline.tables import write_table

HISTORY_FILE = "history.csv"


@dataclass(frozen=True)
class Place:
    """Where to compute: the device, the dtype of frozen weights and activations, and the file for checkpoints.

    What is drawn on the way lies beside the checkpoint until the end, so without one, nothing is drawn.
    """

    device: torch.device
    dtype: torch.dtype
    checkpoint: Path | None


@dataclass(frozen=True)
class Tuned:
    """A model made ready for training.

    Attributes:
        model: what is called: the UNet, or the UNet with its text encoder.
        parts: "unet" and, where it is trained, "text_encoder".
        first_weights: what `add_adapter` returned, by part; nothing where all weights of the UNet are trained.
    """

    model: nn.Module
    parts: Mapping[str, nn.Module]
    first_weights: Mapping[str, Mapping[str, Tensor]]


def tune(
    model: Path,
    streams: Sequence[Stream],
    config: TrainingConfig,
    rank: int,
    place: Place,
    out: Path,
    prompts: TrainedPrompts | None = None,
    samples: SampleSize | None = None,
) -> None:
    """Train on a model and write the result and the history of its training to the directory `out`.

    The result is a LoRA file or, with `tuned: full`, the whole model in diffusers layout. Images and prompts come encoded, so
    only the UNet is loaded; with `prompts`, the text encoder too, and it gets an adapter of its own. The first stream's
    images count the epochs, and it is the one that held-out images are taken from. With `num_processes` above 1, so many
    processes share each batch. With `samples`, images of `config.sample_prompts` come along.

    Raises:
        ValueError: the examples do not fit the UNet, a target is not there, training diverged, or something else started
            this process as one of several.
    """
    refuse_torchrun()
    if config.num_processes == 1:
        _tune(model, streams, config, rank, place, out, prompts, samples)
    else:
        run_processes(config.num_processes, place.device, _tune, model, streams, config, rank, place, out, prompts, samples)


def _tune(
    model: Path,
    streams: Sequence[Stream],
    config: TrainingConfig,
    rank: int,
    place: Place,
    out: Path,
    prompts: TrainedPrompts | None,
    samples: SampleSize | None,
) -> None:
    """Do what `tune` says, as the only process or as one of several, of which the first one speaks and writes."""
    noise_scheduler = load_noise_scheduler(model)
    tuned = prepare_model(model, config, rank, prompts)
    for stream in streams:
        check_examples(tuned.parts["unet"], stream.examples)
    cast_frozen(tuned.model, place.dtype)
    move(tuned.model, place.device)
    compile_for(tuned.parts["unet"], streams, config, place.device)
    draws = Draws(
        seed=config.seed,
        num_train_timesteps=noise_scheduler.config["num_train_timesteps"],
        random_flip=config.random_flip,
        noise_offset=config.noise_offset,
    )
    sampler = make_sampler(model, tuned, config, place, samples)
    streams, held_out = take_held_out(streams, config, draws)
    if process_number() == 0:
        say_plan(tuned, streams, config, rank, place, steps_done(place.checkpoint))
        check_disk(place.checkpoint, tuned.model, config)
    batches = partial(batch_at, streams, draws, config.train_batch_size)
    loss_fn = partial(denoising_loss, noise_scheduler=noise_scheduler, snr_gamma=config.snr_gamma)
    started = time.perf_counter()
    with ThreadPoolExecutor(max_workers=1) as pool:  # a model of several GB takes seconds
        base = pool.submit(base_metadata, model) if config.tuned == "lora" and process_number() == 0 else None
        try:
            history = fit(tuned.model, batches, loss_fn, config, place.dtype, place.checkpoint, held_out, sampler)
        except DivergedError as error:
            raise ValueError(explain_divergence(error, streams, config, place.checkpoint)) from error
    seconds = time.perf_counter() - started
    if process_number():
        return
    with atomic_directory(out) as folder:
        result = write_result(tuned, model, base.result() if base else None, folder)
        write_history(history, config.effective_batch_size / len(streams[0].examples), folder / HISTORY_FILE)
        if sampler is not None:
            shutil.copytree(sampler.folder, folder / SAMPLES, ignore=shutil.ignore_patterns(".*"))
    say_summary(out / result, config, seconds, place.device)


def prepare_model(model: Path, config: TrainingConfig, rank: int, prompts: TrainedPrompts | None) -> Tuned:
    """Load what is trained, on the CPU, and make the weights that are trained the only ones that require a gradient."""
    unet: Any = load_unet(model)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    parts: dict[str, nn.Module] = {"unet": unet}
    first_weights = {}
    if config.tuned == "full":
        if prompts is not None:
            raise ValueError("train_text_encoder: given true: only with tuned=lora")
        unet.requires_grad_(True)
        return Tuned(unet, parts, {})
    first_weights["unet"] = add_adapter(unet, rank, config, config.target_modules, config.seed)
    if prompts is None:
        return Tuned(unet, parts, first_weights)
    both = with_text_encoder(unet, model, prompts)
    parts["text_encoder"] = both.text_encoder
    plain = replace(config, rank_pattern={}, alpha_pattern={})  # they name layers of the UNet
    first_weights["text_encoder"] = add_adapter(both.text_encoder, rank, plain, TARGET_MODULES, config.seed)
    return Tuned(both, parts, first_weights)


def compile_for(unet: nn.Module, streams: Sequence[Stream], config: TrainingConfig, device: torch.device) -> None:
    """Compile the UNet for the batches of these streams, if they are all of one shape and it pays."""
    if any(stream.examples.shapes is not None for stream in streams):
        return
    compile_unet(unet, config.forward_passes, device)


def explain_divergence(error: DivergedError, streams: Sequence[Stream], config: TrainingConfig, checkpoint: Path | None) -> str:
    """What happened, with the files that the step learnt from, and where the last good weights are."""
    accumulation = config.gradient_accumulation_steps
    numbers = range((error.step - 1) * accumulation, error.step * accumulation)
    names = [name for number in numbers for name in names_at(streams, config.seed, config.train_batch_size, number)]
    kept = f"; the last good checkpoint is kept: {checkpoint}" if checkpoint is not None and checkpoint.is_file() else ""
    return f"{error}; the step learnt from {', '.join(dict.fromkeys(names))}{kept}"


def make_sampler(model: Path, tuned: Tuned, config: TrainingConfig, place: Place, size: SampleSize | None) -> Sampler | None:
    """What draws on the way, in the process that speaks and writes; None where nothing is to be drawn."""
    if not config.sample_prompts or size is None or place.checkpoint is None or process_number():
        return None
    embed = prompt_embedder(model, tuned.model, config, size.clip_skip)
    return Sampler(model, tuned.model, embed, config, size, place.dtype, place.checkpoint.parent / SAMPLES)


def take_held_out(streams: Sequence[Stream], config: TrainingConfig, draws: Draws) -> tuple[Sequence[Stream], Sequence[Batch]]:
    """Take the held-out images off the first stream; the batches that they are looked at in."""
    if not config.validation_images:
        return streams, []
    kept, held = hold_out(streams[0].examples, config.validation_images, config.seed)
    return [replace(streams[0], examples=kept), *streams[1:]], validation_batches(held, draws, config.train_batch_size)


def base_metadata(model: Path) -> dict[str, str]:
    """What a LoRA's metadata say of the model that it was trained on."""
    return {"base_unet_sha256": sha256(model / "unet" / UNET_FILE)}


def write_result(tuned: Tuned, model: Path, base: Mapping[str, str] | None, folder: Path) -> Path:
    """Write what was trained into `folder`: a LoRA with the metadata `base`, or the whole model where that is None.

    Returns:
        The name of the file that holds the trained weights, relative to `folder`.
    """
    if base is not None:
        write_lora(tuned.parts, folder / LORA_FILE, tuned.first_weights, base)
        return Path(LORA_FILE)
    for path in sorted(model.iterdir()):
        if path.name != "unet":
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, folder / path.name)
    (folder / "unet").mkdir()
    shutil.copyfile(model / "unet" / "config.json", folder / "unet" / "config.json")
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in tuned.parts["unet"].state_dict().items()}
    save_file(weights, folder / "unet" / UNET_FILE, metadata={"format": "pt"})
    return Path("unet") / UNET_FILE


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


def check_examples(unet: Any, examples: Examples) -> None:
    """Refuse examples that were encoded for another kind of model.

    Raises:
        ValueError: the latents or the embeddings have another width than the UNet takes.
    """
    channels, width = examples.mean.shape[2], examples.prompt_embeds.shape[-1]
    if channels != unet.config["in_channels"]:
        raise ValueError(f"the latents have {channels} channels, the UNet takes {unet.config['in_channels']}: take its own VAE")
    if examples.prompt_embeds.is_floating_point() and width != unet.config["cross_attention_dim"]:
        raise ValueError(
            f"the prompts are embedded in {width} numbers, the UNet takes {unet.config['cross_attention_dim']}: "
            "take the text encoder of the same model"
        )


def write_history(history: Sequence[HistoryRow], epochs_per_step: float, path: Path) -> None:
    """Write history.csv: step, epoch, loss, learning_rate, grad_norm, validation_loss (empty where it was not measured)."""
    rows = (
        (
            row.step,
            *(f"{number:.6g}" for number in (row.step * epochs_per_step, row.loss, row.learning_rate, row.grad_norm)),
            "" if row.validation_loss is None else f"{row.validation_loss:.6g}",
        )
        for row in history
    )
    write_table(path, ("step", "epoch", "loss", "learning_rate", "grad_norm", "validation_loss"), rows)
