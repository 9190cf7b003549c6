"""From encoded images and a model to a trained LoRA file: what the two training stages have in common."""

import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stages.checkpoints.file_names import HISTORY_FILE, PREVIEWS
from stages.lora.batches import Draws, batch_at, held_out_batches, names_at
from stages.lora.estimates import check_disk, say_plan, say_summary
from stages.lora.history import write_history
from stages.lora.keeping import make_keeper
from stages.lora.loop import DivergedError, fit, steps_done
from stages.lora.losses import check_weighting, denoising_loss
from stages.lora.previews import make_previewer
from stages.lora.processes import process_number, refuse_torchrun, run_processes
from stages.lora.run import Run
from stages.lora.tuned_model import (
    Tuned,
    base_metadata,
    load_noise_scheduler,
    prepare_model,
    weights_files,
    write_rest,
    write_weights,
)
from stages.pipeline.outputs import atomic_directory


def train(run: Run, out: Path) -> None:
    """Train, and write the result and the history of its training to the directory `out`.

    The result is a LoRA file or, with `tuned: full`, the whole model in diffusers layout. Images and prompts come encoded, so
    only the UNet is loaded; with `trained_prompts`, the text encoder too, and it gets an adapter of its own. With
    `num_processes` above 1, so many processes share each batch.

    Raises:
        ValueError: the examples do not fit the UNet, a target is not there, training diverged, or something else started
            this process as one of several.
    """
    refuse_torchrun()
    if run.config.num_processes == 1:
        _train(run, out)
    else:
        run_processes(run.config.num_processes, run.device, _train, run, out)


def _train(run: Run, out: Path) -> None:
    """Do what `train` says, as the only process or as one of several, of which the first one speaks and writes."""
    config, speaks = run.config, process_number() == 0
    noise_scheduler = load_noise_scheduler(run.model)
    check_weighting(config, noise_scheduler)
    draws = Draws(run.seed, noise_scheduler.config["num_train_timesteps"], config.random_flip, config)
    tuned = prepare_model(run)
    previewer = make_previewer(run, tuned.model) if speaks else None
    held_out = [] if run.held_out is None else held_out_batches(run.held_out, draws, config.train_batch_size)
    if speaks:
        say_plan(run, tuned, steps_done(run.checkpoint))
        check_disk(run, tuned.model)
    batches = partial(batch_at, run.streams, draws, config.train_batch_size)
    dtype = torch.float32 if run.autocasts else run.dtype
    loss_fn = partial(denoising_loss, noise_scheduler=noise_scheduler, config=config, dtype=dtype)
    started = time.perf_counter()
    with ThreadPoolExecutor(max_workers=1) as pool:  # a model of several GB takes seconds
        prediction_type = noise_scheduler.config["prediction_type"]
        future = pool.submit(base_metadata, run, prediction_type) if config.tuned != "full" and speaks else None
        keeper = make_keeper(run, tuned, lambda: future.result() if future else None) if speaks else None

        def after_step(step: int) -> None:
            if previewer is not None and config.draws_previews(step):
                previewer(step)
            if keeper is not None and config.keeps(step):
                keeper(step)

        try:
            history = fit(run, tuned.model, batches, loss_fn, held_out, after_step)
        except DivergedError as error:
            raise ValueError(explain_divergence(error, run)) from error
    seconds = time.perf_counter() - started
    if not speaks:
        return
    with atomic_directory(out) as folder:
        _write(run, tuned, future.result() if future else None, folder)
        if keeper is not None:
            keeper.hand_over(folder)
        write_history(history, run.steps_per_epoch, folder / HISTORY_FILE)
        if previewer is not None and previewer.folder.is_dir():
            shutil.copytree(previewer.folder, folder / PREVIEWS, ignore=shutil.ignore_patterns(".*"))
    say_summary(out / weights_files(run)[0], config, seconds, run.device)


def _write(run: Run, tuned: Tuned, base: Mapping[str, Any] | None, folder: Path) -> None:
    for name in weights_files(run):
        (folder / name).parent.mkdir(exist_ok=True)
        write_weights(run, tuned, base, name, folder / name)
    if run.config.tuned == "full":
        write_rest(run.model, folder)


def explain_divergence(error: DivergedError, run: Run) -> str:
    """What happened, with the files that the step learnt from, and where the last good weights are."""
    config, checkpoint = run.config, run.checkpoint
    accumulation = config.gradient_accumulation_steps
    numbers = range((error.step - 1) * accumulation, error.step * accumulation)
    names = [name for number in numbers for name in names_at(run.streams, run.seed, config.train_batch_size, number)]
    kept = f"; the last good checkpoint is kept: {checkpoint}" if checkpoint is not None and checkpoint.is_file() else ""
    return f"{error}; the step learnt from {', '.join(dict.fromkeys(names))}{kept}"
