"""Training side by side: ours, diffusers' example scripts, the UNet's own forward and backward, and full fine-tuning.

`python benchmarks/train.py --diffusers CHECKOUT [--json FILE]`, where CHECKOUT is a clone of
https://github.com/huggingface/diffusers whose examples fit the installed version (measured with commit
58eb52c0803ea9af3abec60841c2a093bdf1f951); without it, the scripts are left out.

Every figure comes from processes of its own, all of them in turn, so many rounds. A step is the median over all stretches of
ten steps of all rounds, from the end of one optimizer step to the end of another, everything included; the start is what a
process takes apart from its steps, the least of the rounds. Ours is the stage as DVC runs it; encoding the images and captions
is a stage before it, once for a whole sweep, and is shown apart. The limit is one fixed batch, forward and backward, through
the same UNet with the same adapters, and nothing else.

--sd1 takes a model of Stable Diffusion 1.5's size with random weights, and fits the other settings to it: 512 px, batch 1 on a
CPU and 4 on a GPU, there in bfloat16. --compiled adds ours with its blocks compiled, whether or not the stage would do it for
so few steps, and the limit likewise. --clock cpu takes processor seconds of one thread in place of wall time: for a machine
that others use too.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from stages.pipeline.progress import track  # noqa: E402

SCRIPTS = {
    "text2img": "examples/text_to_image/train_text_to_image_lora.py",
    "dreambooth": "examples/dreambooth/train_dreambooth_lora.py",
}
PROMPT = "asuka"
LIMIT = "forward and backward, adapters"
SD1_SETTINGS = {
    "cpu": {"resolution": 512, "batch_size": 1, "num_images": 4, "steps": 4, "rounds": 1, "dtype": "float32"},
    "cuda": {"resolution": 512, "batch_size": 4, "num_images": 16, "steps": 105, "rounds": 2, "dtype": "bfloat16"},
}
MINI_SETTINGS = {"resolution": 64, "batch_size": 4, "num_images": 32, "steps": 45, "rounds": 4, "dtype": "float32"}
WARM_UP, STRETCH = 5, 10
"""Steps that do not count, where there are more; steps that are timed together."""


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        seconds: by the chosen clock.
        memory: peak, in bytes.
    """

    seconds: float
    memory: int


@dataclass(frozen=True)
class Run:
    """What a training took.

    Attributes:
        cost: of its process.
        ends: when each step ended, in seconds.
        result: bytes of the file with the trained weights.
    """

    cost: Cost
    ends: Sequence[float]
    result: int


@dataclass(frozen=True)
class Pace:
    """What a training takes.

    Attributes:
        step: seconds of one optimizer step.
        start: seconds before the first and after the last.
        memory: peak, in bytes.
        result: bytes of the file with the trained weights.
    """

    step: float
    start: float
    memory: int
    result: int


Train = Callable[[], Run]


@dataclass(frozen=True)
class Setup:
    """What all of them share: the place of work, and the settings of a run."""

    work: Path
    model: Path
    options: argparse.Namespace

    @property
    def environment(self) -> dict[str, str]:
        """Offline, with a fixed number of threads."""
        threads = str(self.options.threads)
        fixed = {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.work / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            "OMP_NUM_THREADS": threads,
            "PYTHONWARNINGS": "ignore",
        }
        return os.environ | fixed | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(self.work), "TRANSFORMERS_VERBOSITY": "error"}

    def run(self, *command: str | Path) -> Cost:
        """Run a command in the place of work."""
        log = self.work / "log"
        started = time.perf_counter()
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)], cwd=self.work, env=self.environment, stdout=file, stderr=file
            )
            _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        if status:
            raise SystemExit(f"{' '.join(map(str, command))}\n{log.read_text()[-3000:]}")
        seconds = wall if self.options.clock == "wall" else usage.ru_utime + usage.ru_stime
        return Cost(seconds, usage.ru_maxrss * 1024)


def make_world(work: Path, options: argparse.Namespace) -> None:
    """Images with captions for both sides: an imagefolder, and the same without captions for DreamBooth."""
    for name in ("dataset", "raw"):
        (work / name).mkdir()
    images = sorted(options.images.glob("*.png"))[: options.num_images]
    with (work / "dataset/metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", "caption"))
        for number, image in enumerate(images):
            for folder in ("dataset", "raw"):
                shutil.copyfile(image, work / folder / image.name)
            writer.writerow((image.name, f"{PROMPT}, picture {number}"))
    (work / "class_images").mkdir()


def write_params(setup: Setup, steps: int, tuned: str) -> None:
    """Write params.yaml for our stages: the committed settings, and what the benchmark sets."""
    options = setup.options
    changes = {"max_train_steps": steps, "train_batch_size": options.batch_size, "tuned": tuned, "checkpointing_steps": 10**6}
    params = {"runtime": {"device": options.device, "threads": options.threads, "dtype": options.dtype}}
    for name in ("encode_images", "encode_captions", "train_text2img", "train_dreambooth"):
        params[name] = yaml.safe_load((ROOT / f"conf/{name}/default.yaml").read_text())
    params["encode_images"]["resolution"] = options.resolution
    params["train_text2img"] |= changes
    params["train_dreambooth"] |= changes | {"class_prompt": PROMPT, "clip_skip": 0, "instance_prompt": PROMPT}
    (setup.work / "params.yaml").write_text(yaml.safe_dump(params))


def encode(setup: Setup) -> dict[str, float]:
    """Run the two encoding stages; seconds of each."""
    write_params(setup, 1, "lora")
    images = setup.run("-m", "stages.encode_images", "--images", "raw", "--vae", setup.model / "vae", "--out", "images")
    captions = setup.run("-m", "stages.encode_captions", "--dataset", "dataset", "--model", setup.model, "--out", "captions")
    return {"images": images.seconds, "captions": captions.seconds}


def timed(setup: Setup, *words: str | Path) -> tuple[Cost, list[float]]:
    """Run a training; its cost, and when its steps ended."""
    cost = setup.run(ROOT / "benchmarks/timed.py", "times.json", setup.options.clock, *words)
    return cost, json.loads((setup.work / "times.json").read_text())


def ours(setup: Setup, kind: str, tuned: str = "lora", compiled: bool = False) -> Run:
    """Run our stage."""
    write_params(setup, setup.options.steps, tuned)
    flags = ["--compiled"] if compiled else []
    inputs = ["--captions", "captions"] if kind == "text2img" else ["--class-images", "class_images"]
    common = ["--images", "images", "--model", setup.model, "--rank", str(setup.options.rank), "--out", "ours"]
    cost, ends = timed(setup, *flags, f"stages.train_{kind}", *inputs, *common)
    result = max(path.stat().st_size for path in (setup.work / "ours").rglob("*.safetensors") if "vae" not in path.parts)
    return Run(cost, ends, result)


def script(setup: Setup, kind: str) -> Run:
    """Run diffusers' script."""
    options = setup.options
    shutil.rmtree(setup.work / "theirs", ignore_errors=True)
    arguments: dict[str, Any] = {
        "pretrained_model_name_or_path": setup.model,
        "resolution": options.resolution,
        "train_batch_size": options.batch_size,
        "max_train_steps": options.steps,
        "rank": options.rank,
        "learning_rate": 1e-4,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 10**6,
        "seed": 0,
        "output_dir": "theirs",
        "mixed_precision": {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}[options.dtype],
    }
    data: dict[str, Any] = {"train_data_dir": "dataset", "caption_column": "caption"}
    if kind == "dreambooth":
        data = {"instance_data_dir": "raw", "instance_prompt": PROMPT}
    flags = ["--center_crop", *(["--random_flip"] if kind == "text2img" else [])]
    words = [word for name, value in (arguments | data).items() for word in (f"--{name}", str(value))]
    cost, ends = timed(setup, options.diffusers / SCRIPTS[kind], *words, *flags)
    return Run(cost, ends, next((setup.work / "theirs").glob("*.safetensors")).stat().st_size)


def contenders(setup: Setup) -> dict[str, Train]:
    """What is measured, by the names it has in the table."""
    options = setup.options
    trainings: dict[str, Train] = {}
    for kind in options.kinds:
        trainings[f"{kind}, ours"] = partial(ours, setup, kind)
        if options.compiled:
            trainings[f"{kind}, ours, compiled"] = partial(ours, setup, kind, compiled=True)
        if options.diffusers is not None:
            trainings[f"{kind}, script"] = partial(script, setup, kind)
    if not options.sd1:
        trainings["full fine-tuning, ours"] = partial(ours, setup, "text2img", tuned="full")
    return trainings


def race(setup: Setup, trainings: Mapping[str, Train]) -> tuple[dict[str, Pace], dict[str, float]]:
    """Run each training and the bare UNet once a round, in turn; the trainings' paces, and the UNet's seconds."""
    runs: dict[str, list[Run]] = {name: [] for name in trainings}
    bares: list[dict[str, list[float]]] = []
    turns = [name for _ in range(setup.options.rounds) for name in ("the UNet alone", *trainings)]
    for name in track(turns, "runs"):
        if name in trainings:
            runs[name].append(trainings[name]())
        else:
            bares.append(bare(setup))
    unet = {name: median_step([ends[name] for ends in bares]) for name in bares[0]}
    return {name: pace(done) for name, done in runs.items()}, unet


def pace(runs: Sequence[Run]) -> Pace:
    """The pace of a training, of all its rounds."""
    step = median_step([run.ends for run in runs])
    start = min(run.cost.seconds - (run.ends[-1] - run.ends[0]) for run in runs) - step
    return Pace(step, start, max(run.cost.memory for run in runs), runs[0].result)


def median_step(runs: Sequence[Sequence[float]]) -> float:
    """Seconds of a step, from the ends of the steps of several runs."""
    paces = []
    for ends in runs:
        counted = ends[WARM_UP - 1 :] if len(ends) > WARM_UP + STRETCH else ends
        length = min(STRETCH, len(counted) - 1)
        paces += [(later - earlier) / length for earlier, later in zip(counted, counted[length:], strict=False)]
    return statistics.median(paces)


def bare(setup: Setup) -> dict[str, list[float]]:
    """When the steps of the UNet alone ended: see `measure_unet`."""
    names = ("batch_size", "threads", "rank", "device", "dtype", "clock")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(setup.options, name)))]
    words += ["--model", str(setup.model), "--steps", str(setup.options.steps)]
    flags = [f"--{name}" for name in ("sd1", "compiled") if getattr(setup.options, name)]
    setup.run(__file__, "--only-unet", "unet.json", *words, *flags)
    return json.loads((setup.work / "unet.json").read_text())


def measure_unet(options: argparse.Namespace) -> dict[str, list[float]]:
    """When steps of the UNet on one fixed batch ended: forward, and forward with backward, without and with adapters."""
    import torch
    from safetensors.torch import load_file
    from timed import CLOCKS

    from stages.lora.adapters import add_adapter, cast_frozen, load_unet, trained_parameters
    from stages.lora.settings import AdapterConfig

    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    values = yaml.safe_load((ROOT / "conf/train_text2img/default.yaml").read_text())
    config = AdapterConfig(**{name: values[name] for name in AdapterConfig.__dataclass_fields__})
    images, captions = (load_file(options.work / name) for name in ("images", "captions"))
    latents = images["mean"][: options.batch_size, 0].to(device)
    embeds = captions["prompt_embeds"][: options.batch_size].to(device)
    timesteps = torch.arange(len(latents), device=device) * 100
    dtype = getattr(torch, options.dtype)
    clock = CLOCKS[options.clock]

    def ends_of_steps(unet: Any, backward: bool) -> list[float]:
        ends = []
        for _ in range(options.steps):
            with torch.set_grad_enabled(backward), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = unet(latents, timesteps, embeds, return_dict=False)[0].square().mean()
            if backward:
                loss.backward()
            for parameter in trained_parameters(unet).values():
                parameter.grad = None
            if device.type == "cuda":
                torch.cuda.synchronize()
            ends.append(clock())
        return ends

    result = {}
    unet: Any = load_unet(options.model)
    unet.to(device=device, memory_format=torch.channels_last)
    if not options.sd1:
        result["forward"] = ends_of_steps(unet, backward=False)
        result["forward and backward, all weights"] = ends_of_steps(unet.requires_grad_(True), backward=True)
        unet.requires_grad_(False)
        unet.cpu()
    add_adapter(unet, options.rank, config, config.target_modules, seed=0)
    cast_frozen(unet, dtype)
    unet.to(device)
    result["forward, adapters"] = ends_of_steps(unet, backward=False)
    result[LIMIT] = ends_of_steps(unet, backward=True)
    if options.compiled:
        unet.compile_repeated_blocks()
        result[f"{LIMIT}, compiled"] = ends_of_steps(unet, backward=True)
    return result


def ratios(mine: Pace, theirs: Pace | None, limit: float) -> dict[str, float]:
    """Ours against the script and the limit."""
    figures = {"step_vs_limit": mine.step / limit}
    if theirs is not None:
        figures["steps_per_second"] = theirs.step / mine.step
        figures["peak_memory"] = mine.memory / theirs.memory
        figures["start"] = mine.start / theirs.start
    return figures


def report(paces: dict[str, Pace], unet: dict[str, float], encoding: dict[str, float]) -> None:
    """Print the tables."""
    for name, seconds in unet.items():
        print(f"UNet, {name}: {seconds * 1000:.1f} ms")
    for name, seconds in encoding.items():
        print(f"encoding {name}, once for a sweep: {seconds:.1f} s")
    print(f"{'':30}{'ms a step':>12}{'start s':>10}{'peak MiB':>10}{'file MB':>10}")
    for name, figures in paces.items():
        numbers = (figures.step * 1000, figures.start, figures.memory / 2**20, figures.result / 1e6)
        print(f"{name:30}{numbers[0]:12.1f}{numbers[1]:10.1f}{numbers[2]:10.0f}{numbers[3]:10.3f}")


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder), Path(folder) / "model" if options.sd1 else options.model.resolve(), options)
        if options.sd1:
            setup.run(ROOT / "benchmarks/sd1.py", setup.model, ROOT / "data/mini/base/tokenizer")
        make_world(setup.work, options)
        encoding = encode(setup)
        trainings = contenders(setup)
        for name in trainings:
            if name.endswith("compiled"):
                print(f"{name}: {trainings[name]().cost.seconds:.0f} s the first time, with compiling", flush=True)
        paces, unet = race(setup, trainings)
    report(paces, unet, encoding)
    result = {}
    for name in paces:
        kind, _, who = name.partition(", ")
        if kind in options.kinds and who != "script":
            mode = who.removeprefix("ours")
            result[kind + mode] = ratios(paces[name], paces.get(f"{kind}, script"), unet[LIMIT + mode])
    full, lora = paces.get("full fine-tuning, ours"), paces.get("text2img, ours")
    if full is None or lora is None:
        return {"ratios": result}
    against = {name: getattr(lora, name) / getattr(full, name) for name in ("step", "memory", "result")}
    return {"ratios": result, "lora_vs_full": against}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data/mini/base", help="in diffusers layout")
    parser.add_argument("--images", type=Path, default=ROOT / "data/mini/asuka", help="a folder with PNG images")
    parser.add_argument("--diffusers", type=Path, help="a checkout of diffusers")
    parser.add_argument("--json", type=Path, help="a file for the ratios")
    parser.add_argument("--kinds", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--sd1", action="store_true", help="a model of Stable Diffusion 1.5's size in place of --model")
    parser.add_argument("--compiled", action="store_true", help="ours with compiled blocks, too")
    parser.add_argument("--steps", type=int, help="of a run")
    parser.add_argument("--rounds", type=int, help="how often everything runs")
    parser.add_argument("--num-images", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--only-unet", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    on_gpu = options.device == "cuda" or (options.device == "auto" and shutil.which("nvidia-smi") is not None)
    settings = SD1_SETTINGS["cuda" if on_gpu else "cpu"] if options.sd1 else MINI_SETTINGS
    for name, value in settings.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    """Measure and print; with --json, write the ratios."""
    options = parse()
    if options.only_unet:
        options.work = options.only_unet.absolute().parent
        options.only_unet.write_text(json.dumps(measure_unet(options)))
        return
    if options.diffusers is not None:
        options.diffusers = options.diffusers.resolve()
    result = benchmark(options)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
