"""What a training says before it starts, after its first steps, and when it has ended."""

import resource
import shutil
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.encoding.data_warnings import say_problems
from stages.lora.adapter_config import OWN_SETTINGS, RANK
from stages.lora.adapters import idle_patterns, trained_parameters
from stages.lora.config import OPTIMIZER_BYTES, TrainingConfig
from stages.lora.examples import Examples
from stages.lora.run import Run
from stages.lora.tuned_model import Tuned
from stages.pipeline.progress import say
from stages.pipeline.torch_runtime import synchronize
from stages.pipeline.variants import kept_steps
from stages.pipeline.wording import counted, sized

WEIGHT_BYTES = 4
UNKNOWN = 16
"""What another optimizer remembers of each trained weight at most, as far as is known."""
STEPS_BEFORE_ESTIMATE = 20
PICTURE = (16, 24)
"""Most rows and columns that a mask is shown in."""
SHADES = " .+#"


def say_plan(run: Run, tuned: Tuned, done: int = 0) -> None:
    """Print what the run is going to do; `done` of its steps were done before it was interrupted."""
    config, (first, *others) = run.config, run.streams
    epochs = config.max_train_steps / run.steps_per_epoch
    trained, total = (sum(parameter.numel() for parameter in parameters) for parameters in _parameters(tuned.model))
    prior = f" and {counted(len(others[0].examples), 'class image')}" if others else ""
    held_out = f"; {counted(len(run.held_out), 'more image')} held out" if run.held_out else ""
    print(
        f"{counted(len(first.examples), 'image')}{_repeated(first.examples)}{prior}, {config.effective_batch_size} a step: "
        f"{run.steps_per_epoch:g} steps an epoch, {counted(config.max_train_steps, 'step')} are {epochs:.3g} epochs: "
        f"each image is seen about {counted(max(1, round(epochs)), 'time')}{held_out}\n"
        f"{describe_adapter(tuned, config, run.rank)}: {trained:,} of {total:,} weights are trained "
        f"({trained / total:.2%}); {'their' if config.tuned == 'full' else 'the'} file will have about "
        f"{sized(WEIGHT_BYTES * trained)}",
        flush=True,
    )
    if said := describe_masks(first.examples, config.unmasked_weight):
        print(said, flush=True)
    if said := describe_loaders(tuned, config):
        print(said, flush=True)
    if config.tuned == "lora":
        say_problems(idle_patterns(tuned.parts["unet"], config))
    left = config.max_train_steps - done
    if left > STEPS_BEFORE_ESTIMATE:
        steps = f"{counted(left, 'step')} are left" if done else counted(left, "step")
        print(f"{steps}: after the first {STEPS_BEFORE_ESTIMATE} it is said how long they take", flush=True)


def _repeated(examples: Examples) -> str:
    return f", shown {examples.shown:,} times an epoch," if examples.repeats else ""


def describe_masks(examples: Examples, unmasked_weight: float) -> str:
    """How much of the images the masks leave, with one of them in letters: # is the subject; "" where there are none."""
    if examples.pixel_weights is None:
        return ""
    shares, first = [], None
    for index in range(len(examples)):
        weights = examples.weights_of_pixels(index, mirrored=0)
        assert weights is not None
        mask = _mask_of(weights, unmasked_weight)
        shares.append(float(mask.mean()))
        if first is None and shares[-1] < 1:
            first = index, mask
    if first is None:
        return ""
    index, mask = first
    masked = sum(share < 1 for share in shares)
    rows = functional.adaptive_avg_pool2d(mask, (min(mask.shape[1], PICTURE[0]), min(mask.shape[2], PICTURE[1])))
    picture = "\n".join("  " + "".join(2 * SHADES[round(float(part) * 3)] for part in row) for row in rows[0])
    rest = f"the rest counts {unmasked_weight:g} times as much" if unmasked_weight else "the rest does not count"
    return (
        f"masks: of {masked} of {counted(len(examples), 'image')}, {sum(shares) / len(shares):.0%} of the area of all; {rest}; "
        f"{examples.file_names[index]}:\n{picture}"
    )


def _mask_of(weights: Tensor, unmasked_weight: float) -> Tensor:
    """The mask, (1, h, w) in [0, 1], that weights of mean 1 were made from, its highest value being 1."""
    return (weights / weights.max() - unmasked_weight).clamp(min=0) / (1 - unmasked_weight)


def describe_time(seconds: float) -> str:
    """A time in minutes and seconds, or in hours and minutes."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def check_disk(run: Run, model: nn.Module) -> None:
    """Refuse a run whose checkpoints and result would fill the disk.

    A checkpoint replaces the one before when it is written whole, so there are two for a moment.

    Raises:
        OSError: there is too little room where the checkpoint will be.
    """
    if run.folder is None:
        return
    config, steps = run.config, run.housekeeping.checkpointing_steps
    trained = sum(parameter.numel() for parameter in _parameters(model)[0])
    checkpoints = 2 if steps < config.max_train_steps else 0
    kept = len(kept_steps(config.keep_every, config.max_train_steps))
    # What is kept lies beside the checkpoint until the end, and then in the result, too.
    average = 0 if config.ema_decay is None else WEIGHT_BYTES
    in_checkpoint = WEIGHT_BYTES + OPTIMIZER_BYTES.get(config.optimizer, UNKNOWN) + average
    needed = trained * (checkpoints * in_checkpoint + (2 * kept + 1) * WEIGHT_BYTES)
    free = shutil.disk_usage(run.folder).free
    if needed > free:
        on_the_way = f", {kept} files kept on the way (keep_every)" if kept else ""
        raise OSError(
            f"{run.folder}: {needed / 1e9:.2f} GB are needed for {checkpoints} checkpoints{on_the_way} and the result, and "
            f"{free / 1e9:.2f} GB are free: make room, or set housekeeping.checkpointing_steps to {config.max_train_steps} "
            "for none"
        )


def describe_adapter(tuned: Tuned, config: TrainingConfig, rank: int) -> str:
    """What is trained, in words."""
    if config.tuned == "full":
        return "full fine-tuning"
    if config.tuned == "embedding":
        return _describe_word(tuned)
    if config.peft:
        values = ", ".join(f"{name} {rank if value == RANK else value}" for name, value in config.peft.items())
        return f"{config.kind} ({values}), on {' and '.join(tuned.parts)}"
    kind = {"lora": "LoRA", "lokr": "LoKr", "loha": "LoHa"}[config.peft_type]
    kind = "DoRA" if config.use_dora else f"rs{kind}" if config.use_rslora else kind
    lora_alpha = rank if config.lora_alpha == "rank" else config.lora_alpha
    with_word = "" if tuned.vectors is None else f", and {_describe_word(tuned)}"
    return f"{kind} of rank {rank}, alpha {lora_alpha:g}, on {' and '.join(tuned.parts)}{with_word}"


def _describe_word(tuned: Tuned) -> str:
    count = 0 if tuned.vectors is None else len(tuned.vectors)
    return f"textual inversion, a word of {counted(count, 'vector')}"


def describe_loaders(tuned: Tuned, config: TrainingConfig) -> str:
    """Who reads the file, where that is not everybody who reads LoRAs; nothing where it is."""
    if config.tuned == "embedding":
        return (
            "diffusers' load_textual_inversion reads the file; A1111 and ComfyUI read it as a word that is called as the file"
        )
    if config.tuned == "lora" and config.kind not in OWN_SETTINGS:
        return f"PEFT (inject_adapter_in_model) and this pipeline read {config.kind}; diffusers, A1111 and ComfyUI do not"
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


class Estimate:
    """What the first steps say of the rest.

    Args:
        first: steps done before this process began.
        total: steps of the whole run.
        device: where it runs.
    """

    def __init__(self, first: int, total: int, device: torch.device) -> None:
        self.first, self.total, self.device = first, total, device
        self.started = time.perf_counter()

    def after(self, step: int) -> None:
        """Print, after some steps, how long the rest takes at their pace, and what memory they took."""
        if step in (self.first + 1, self.first + STEPS_BEFORE_ESTIMATE):
            synchronize(self.device)
        if step == self.first + 1:
            self.started = time.perf_counter()  # without the first step, which may have compiled
        if step != self.first + STEPS_BEFORE_ESTIMATE or step == self.total:
            return
        pace = (time.perf_counter() - self.started) / (STEPS_BEFORE_ESTIMATE - 1)
        left = self.total - step
        say(
            f"{pace * 1000:.0f} ms a step: about {describe_time(pace * left)} for the {left} steps left; "
            f"peak memory so far {peak_memory(self.device) / 2**30:.2f} GiB"
        )


def say_summary(lora: Path, config: TrainingConfig, seconds: float, device: torch.device) -> None:
    """Print size, pace and memory of a finished run."""
    pace = config.max_train_steps * config.effective_batch_size / seconds
    print(
        f"{lora}: {sized(lora.stat().st_size)}; {seconds:.1f} s of training, {pace:.1f} images/s, "
        f"peak memory {peak_memory(device) / 2**30:.2f} GiB",
        flush=True,
    )


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process held so far: on the GPU, or in all."""
    if device.type in ("cuda", "xpu"):
        return torch.accelerator.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained ones, and all."""
    return list(trained_parameters(model).values()), list(model.parameters())
