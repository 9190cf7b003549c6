"""What one GPU does with this pipeline: training, drawing, the same bytes, memory. Each figure is printed as it is known.

    python benchmarks/gpu.py                           # meant to take less than 8 minutes on an H100
    python benchmarks/gpu.py --diffusers CHECKOUT      # with diffusers' example scripts, as benchmarks/train.py has them
    python benchmarks/gpu.py --device cpu --small      # whether it runs at all, on a small model: these figures mean nothing

It needs neither DVC nor a hub: the model has the size of Stable Diffusion 1.5 and random weights, which take the same time. The
peers, in the same run: the UNet with PEFT's LoRA alone, forward and backward, operation by operation; one large matrix product;
ours operation by operation; and a plain loop of diffusers' StableDiffusionPipeline.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bare_unet import matrix_throughput  # noqa: E402
from sd1 import write_model  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from stages.drawing.config import SamplingConfig  # noqa: E402
from stages.drawing.loaded_models import load_models  # noqa: E402
from stages.drawing.sampling import draw  # noqa: E402
from stages.lora.adapters import add_adapter, trained_parameters  # noqa: E402
from stages.lora.batches import Batch, Draws, Stream, batch_at  # noqa: E402
from stages.lora.config import TrainingConfig  # noqa: E402
from stages.lora.estimates import peak_memory  # noqa: E402
from stages.lora.examples import Examples  # noqa: E402
from stages.lora.loop import fit  # noqa: E402
from stages.lora.losses import denoising_loss  # noqa: E402
from stages.lora.run import Run, TrainedPrompts  # noqa: E402
from stages.lora.tuned_model import load_noise_scheduler, load_unet, move, prepare_model  # noqa: E402
from stages.pipeline.compose import group_values  # noqa: E402
from stages.pipeline.config import HousekeepingConfig, RuntimeConfig  # noqa: E402
from stages.pipeline.recorded import make_recorder  # noqa: E402
from stages.pipeline.torch_runtime import device_name, prepare, synchronize  # noqa: E402

MINI = ROOT / "data/mini/base"
PARTS = ("trainings", "class_images", "text_encoder", "mini_world", "large_images", "drawing", "same_bytes")
IMAGES, KILLED_AT, BYTES_STEPS = 16, 13, 20
BEGAN = time.perf_counter()


@dataclass(frozen=True)
class Bench:
    """Where and how large.

    Attributes:
        device: that is measured.
        model: in diffusers layout.
        side: of the latents.
        steps: of a training.
        inference_steps: of an image.
        threads: of the CPU.
    """

    device: torch.device
    model: Path
    side: int
    steps: int
    inference_steps: int
    threads: int

    @property
    def half(self) -> str:
        """The dtype of frozen weights: few CPUs compute in bfloat16 in any reasonable time."""
        return "float32" if self.device.type == "cpu" else "bfloat16"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all of it, one thing after the other."""
    options = parse(argv)
    device = prepare(RuntimeConfig(options.device, options.threads, "float32", True, False, True))
    sizes = (MINI, 8, BYTES_STEPS, 4) if options.small else (options.model, 64, 60, 50)
    bench = Bench(device, *sizes, options.threads)
    if options.digest:
        print(digest_of_training(bench, options.digest, options.folder, options.dies))
        return
    say(f"torch {torch.__version__}, {device_name(device)}, {options.threads} threads of the CPU")
    with tempfile.TemporaryDirectory() as folder:
        if not options.small:
            bench = replace(bench, model=Path(folder) / "model")
            write_model(bench.model, MINI / "tokenizer")
            say("a model of Stable Diffusion 1.5's size is written, with random weights")
        for part in options.parts:
            try:
                globals()[part](bench)
            except (RuntimeError, ValueError) as error:  # what is known of a card that is rented is not to be lost
                say(f"{part}: {type(error).__name__}: {str(error).splitlines()[0]}")
    if options.diffusers:
        command = [sys.executable, ROOT / "benchmarks/train.py", "--sd1", "--diffusers", options.diffusers, "--device"]
        subprocess.run([*command, options.device], check=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda", "mps", "xpu"])
    parser.add_argument("--threads", type=int, default=4, help="of the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; all of it unless told")
    parser.add_argument("--small", action="store_true", help="a small model and a few steps")
    parser.add_argument("--diffusers", type=Path, help="a checkout of diffusers")
    parser.add_argument("--model", type=Path, default=MINI, help=argparse.SUPPRESS)
    parser.add_argument("--digest", help=argparse.SUPPRESS)  # what the check of bytes starts
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dies", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def say(text: str) -> None:
    """A line, with the seconds since the beginning."""
    print(f"[{time.perf_counter() - BEGAN:5.0f} s] {text}", flush=True)


def random_examples(model: Path, side: int, numbers: bool = False) -> Examples:
    """Some latents, and prompts of the width that the model's UNet takes, or their numbers."""
    from diffusers import UNet2DConditionModel

    config: Any = UNet2DConditionModel.load_config(model / "unet")
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(IMAGES, 2, config["in_channels"], side, side, generator=generator)
    embeds = torch.randn(IMAGES, 77, config["cross_attention_dim"], generator=generator)
    prompts = torch.arange(IMAGES) if numbers else embeds
    names = tuple(f"{number}.png" for number in range(IMAGES))
    return Examples(mean, torch.full_like(mean, 0.1), 1.0, prompts, prompts[0], names)


def make_run(bench: Bench, dtype: str, classes: bool = False, graphs: bool = True, **changes: Any) -> Run:
    """A training of a LoRA as the presets have it, on random latents."""
    values: dict[str, Any] = group_values("train_text2img", ROOT / "conf") | {"max_train_steps": bench.steps} | changes
    examples = random_examples(bench.model, bench.side, values["train_text_encoder"])
    streams = [Stream("instance", examples), *([Stream("class", examples, 1.0)] if classes else [])]
    prompts = [f"a portrait, number {number}" for number in range(IMAGES)]
    trained = TrainedPrompts(prompts, 0) if values["train_text_encoder"] else None
    housekeeping = HousekeepingConfig(checkpointing_steps=5, logging_steps=10**6)
    config = TrainingConfig(**{field.name: values[field.name] for field in fields(TrainingConfig)})
    given = (bench.model, streams, config, housekeeping, 4, 0, bench.device, getattr(torch, dtype), graphs)
    return Run(*given, trained_prompts=trained)


def train(run: Run, at_step: Callable[[int], None] = lambda step: None) -> torch.Tensor:
    """Train; the weights. `at_step` is called before each step, with how many were done before."""
    noise_scheduler, tuned = load_noise_scheduler(run.model), prepare_model(run)
    draws = Draws(run.seed, 1000, False, run.config)
    dtype = torch.float32 if run.autocasts else run.dtype
    loss_fn = partial(denoising_loss, noise_scheduler=noise_scheduler, config=run.config, dtype=dtype)

    def batches(number: int) -> Any:
        at_step(number)
        return batch_at(run.streams, draws, run.config.train_batch_size, number)

    fit(run, tuned.model, batches, loss_fn)
    return torch.cat([weight.detach().flatten().cpu() for weight in trained_parameters(tuned.model).values()])


def step_seconds(run: Run) -> float:
    """Seconds of a step, from a third of the training on."""
    first, began = run.config.max_train_steps // 3, 0.0

    def at_step(step: int) -> None:
        nonlocal began
        if step == first:
            synchronize(run.device)
            began = time.perf_counter()

    train(run, at_step)
    synchronize(run.device)
    return (time.perf_counter() - began) / (run.config.max_train_steps - first)


def busy_share(run: Run) -> float:
    """The share of the last ten steps in which the device computes: time of its kernels over time by the clock."""
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CUDA])
    began = 0.0

    def at_step(step: int) -> None:
        nonlocal began
        if step == run.config.max_train_steps - 10:
            synchronize(run.device)
            profiler.start()
            began = time.perf_counter()

    train(run, at_step)
    synchronize(run.device)
    seconds = time.perf_counter() - began
    profiler.stop()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6 / seconds


def bare_seconds(bench: Bench, dtype: torch.dtype, batch_size: int) -> tuple[float, float]:
    """Seconds of forward and backward of the UNet with PEFT's LoRA, all in one dtype, and its floating-point operations."""
    run = make_run(bench, "float32")
    unet: Any = load_unet(bench.model)
    add_adapter(unet, run.rank, run.config, run.config.target_modules, seed=0)
    move(unet.to(dtype).train(), bench.device)
    batch: Any = batch_at(run.streams, Draws(0, 1000, False, run.config), batch_size, 0)
    assert isinstance(batch, Batch)
    batch = batch.to(bench.device)

    def step() -> None:
        unet(batch.latents.to(dtype), batch.timesteps, batch.encoder_hidden_states.to(dtype))[0].square().mean().backward()
        unet.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    return seconds_of(bench, step, bench.steps // 3), counter.get_total_flops()


def seconds_of(bench: Bench, work: Callable[[], object], times: int) -> float:
    """Seconds of something that is done so many times, after once."""
    work()
    synchronize(bench.device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(bench.device)
    return (time.perf_counter() - began) / times


def trainings(bench: Bench) -> None:
    """A step at SD1's size, 512 px, batch 4, in bfloat16, beside its peers."""
    if bench.device.type in ("cpu", "cuda"):
        product = matrix_throughput(bench.device, getattr(torch, bench.half))
        say(f"one large matrix product, {bench.half}: {product / 1e12:.1f} TFLOP/s")
    else:
        product = 0.0
    bare, flops = bare_seconds(bench, getattr(torch, bench.half), 4)
    say(
        f"the UNet with PEFT's LoRA, forward and backward, {bench.half}, batch 4: {bare * 1e3:.1f} ms, {flops / 1e12:.2f} TFLOP"
    )
    each = step_seconds(make_run(bench, bench.half, graphs=False))
    say(f"a step of ours, operation by operation: {each * 1e3:.1f} ms, {each / bare:.2f} x the UNet")
    run = make_run(bench, bench.half)
    ours = step_seconds(run)
    of_product = f", {flops / ours / product:.0%} of the matrix product" if product else ""
    say(f"a step of ours: {ours * 1e3:.1f} ms, {ours / bare:.2f} x the UNet, {ours / each:.2f} x op by op{of_product}")
    say(f"peak memory so far: {peak_memory(bench.device) / 2**30:.2f} GiB")
    if bench.device.type == "cuda":
        say(f"the card is busy in {busy_share(run):.0%} of a step")
    single = step_seconds(make_run(bench, "float32"))
    say(f"a step of ours in float32: {single * 1e3:.1f} ms")


def class_images(bench: Bench) -> None:
    """DreamBooth with prior preservation against as many images without."""
    with_classes = step_seconds(make_run(bench, bench.half, classes=True))
    as_many = step_seconds(make_run(bench, bench.half, train_batch_size=8))
    say(f"4 images and 4 class images a step: {with_classes * 1e3:.1f} ms, {with_classes / as_many:.2f} x 8 images")


def text_encoder(bench: Bench) -> None:
    """A step that trains the text encoder too."""
    seconds = step_seconds(make_run(bench, bench.half, train_text_encoder=True))
    say(f"a step that trains the text encoder too: {seconds * 1e3:.1f} ms")


def mini_world(bench: Bench) -> None:
    """The mini world's training."""
    small = replace(bench, model=MINI, side=8, steps=max(bench.steps, 240) if bench.device.type != "cpu" else bench.steps)
    for dtype in dict.fromkeys(["float32", bench.half]):
        seconds = step_seconds(make_run(small, dtype, classes=True))
        say(f"mini world, 4 images and 4 class images, {dtype}: {1 / seconds:.1f} steps/s")


def large_images(bench: Bench) -> None:
    """The lab's training: 1024 px, batch 2."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    large = replace(bench, side=2 * bench.side, steps=max(6, bench.steps // 2))
    seconds = step_seconds(make_run(large, bench.half, train_batch_size=2))
    memory = peak_memory(bench.device) / 2**30
    say(f"1024 px, batch 2: {seconds * 1e3:.0f} ms a step, {memory:.1f} GiB; 10,000 steps take {seconds * 1e4 / 60:.0f} min")


def drawing(bench: Bench) -> None:
    """Images of 512 px, four at once, against a plain loop of the pipeline."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    dtype, seeds, prompts = getattr(torch, bench.half), [0, 1, 2, 3], ["a portrait", "a landscape"]
    models = load_models(bench.model, bench.device, dtype, make_recorder(True, bench.device))
    config = SamplingConfig("", "ddim", bench.inference_steps, 7.5, 8 * bench.side, 4, 0, "plain")
    ours = seconds_of(bench, lambda: list(draw(models, prompts, seeds, config)), 1)
    scheduler = DDIMScheduler.from_pretrained(bench.model, subfolder="scheduler")
    make: Any = StableDiffusionPipeline
    pipeline = make(
        models.vae, models.text_encoder, models.tokenizer, models.unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    sizes = {"num_inference_steps": bench.inference_steps, "height": 8 * bench.side, "width": 8 * bench.side}

    def plain() -> None:
        for prompt in prompts:
            of_images = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
            pipeline([prompt] * len(seeds), generator=of_images, **sizes)

    theirs, images = seconds_of(bench, plain, 1), len(prompts) * len(seeds)
    say(f"drawing: {images / ours:.2f} images/s, {theirs / ours:.2f} x a plain loop of StableDiffusionPipeline")


def same_bytes(bench: Bench) -> None:
    """Two trainings, and one that is killed and goes on, in processes of their own."""
    for dtype in ("float32", "bfloat16", "float16") if bench.half == "bfloat16" else ("float32",):
        with tempfile.TemporaryDirectory() as folder:
            digests = [_in_a_process(bench, dtype, Path(folder) / "whole"), _in_a_process(bench, dtype, Path(folder) / "again")]
            killed = _in_a_process(bench, dtype, Path(folder) / "killed", "--dies")
            assert not killed, "it should have been killed"
            digests.append(_in_a_process(bench, dtype, Path(folder) / "killed"))
        same = "the same bytes" if len(set(digests)) == 1 else f"DIFFERENT BYTES: {digests}"
        say(f"{dtype}: twice, and killed after step {KILLED_AT} and resumed: {same}")


def _in_a_process(bench: Bench, dtype: str, folder: Path, *more: str) -> str:
    folder.mkdir(exist_ok=True)
    names = ["--device", bench.device.type, "--model", str(bench.model), "--digest", dtype, "--folder", str(folder)]
    size = ["--threads", str(bench.threads), *(["--small"] if bench.side == 8 else [])]
    done = subprocess.run([sys.executable, __file__, *names, *size, *more], capture_output=True, text=True)
    if done.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(done.stderr[-3000:])
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else ""


def digest_of_training(bench: Bench, dtype: str, folder: Path, dies: bool) -> str:
    """Train a few steps, or go on where the last process was; the sha256 of the weights."""
    run = replace(make_run(replace(bench, steps=BYTES_STEPS), dtype, classes=True), folder=folder)

    def at_step(step: int) -> None:
        if dies and step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    return hashlib.sha256(train(run, at_step).numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    main()
