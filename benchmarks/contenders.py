"""Who takes part in train.py: the programs, their arguments, and the images and settings that they share."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "text2img": "examples/text_to_image/train_text_to_image_lora.py",
    "dreambooth": "examples/dreambooth/train_dreambooth_lora.py",
    "textual_inversion": "examples/textual_inversion/textual_inversion.py",
}
PROMPT = "asuka"
WORD, INITIALIZER = "<asuka>", "anime"
FORWARD, FORWARD_ADAPTERS = "forward", "forward, adapters"
LIMIT, ALL_WEIGHTS = "forward and backward, adapters", "forward and backward, all weights"
BY_PEFT = f"{LIMIT}, by PEFT"
FULL = "full fine-tuning, ours"
COMPILED = ", compiled"


@dataclass(frozen=True)
class Contender:
    """A program that takes part.

    Attributes:
        program: of this folder.
        words: its arguments, after those that tell it about turns.
        result: a pattern for the file with the trained weights, in the program's folder; "" for none.
        tuned: what our stage tunes.
        compiled: whether our stage compiles the UNet.
    """

    program: str
    words: Sequence[str | Path]
    result: str = ""
    tuned: str = "lora"
    compiled: bool = False

    def result_bytes(self, folder: Path) -> int:
        """Bytes of the file with the trained weights; 0 for none."""
        return max(path.stat().st_size for path in folder.glob(self.result)) if self.result else 0


@dataclass(frozen=True)
class Setup:
    """What all of them share: the place of work, and the settings of a run."""

    work: Path
    model: Path
    options: argparse.Namespace

    @property
    def environment(self) -> dict[str, str]:
        """Offline, with a fixed number of threads."""
        fixed = {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.work / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            "OMP_NUM_THREADS": str(self.options.threads),
            "PYTHONWARNINGS": "ignore",
        }
        return os.environ | fixed | {"PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}

    def run(self, *command: str | Path) -> float:
        """Run a Python program in the place of work; its seconds."""
        started = time.perf_counter()
        words = [sys.executable, *map(str, command)]
        done = subprocess.run(words, cwd=self.work, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{(done.stdout + done.stderr)[-3000:]}")
        return time.perf_counter() - started


def make_world(work: Path, options: argparse.Namespace) -> None:
    """The same images for both sides: captioned, with a manifest for our stages, and alone for the script of DreamBooth."""
    from PIL import Image

    from stages.dataset.metadata import ManifestRow, write_captions, write_manifest

    images = sorted(options.images.glob("*.png"))[: options.num_images]
    for name in ("dataset/train", "raw", "instance"):
        (work / name).mkdir(parents=True)
        for image in images:
            shutil.copyfile(image, work / name / image.name)
    write_captions(work / "dataset/train", {image.name: f"{PROMPT}, picture {number}" for number, image in enumerate(images)})
    write_manifest(work / "raw", [ManifestRow(image.name, "", "", "", "", *Image.open(image).size) for image in images])
    (work / "class_images").mkdir()


def write_params(setup: Setup, folder: Path, tuned: str = "lora", compiled: bool = False) -> None:
    """Write params.yaml for our stages: the committed settings, and what the benchmark sets."""
    from stages.pipeline.compose import group_values

    options = setup.options
    changes = {
        "max_train_steps": options.steps,
        "train_batch_size": options.batch_size,
        "tuned": tuned,
        "compile": compiled,
    }
    params: dict[str, Any] = {
        "runtime": {
            "device": options.device,
            "threads": options.threads,
            "dtype": options.dtype,
            "deterministic": True,
            "tf32": False,
            "cuda_graphs": True,
        },
        "housekeeping": {"checkpointing_steps": 10**6, "logging_steps": 10},
    }
    for name in ("encode_images", "encode_captions", *(f"train_{kind}" for kind in SCRIPTS)):
        params[name] = group_values(name, ROOT / "conf")
    params["encode_images"]["resolution"] = options.resolution
    params["encode_captions"]["clip_skip"] = 0
    params["train_text2img"] |= changes
    params["train_dreambooth"] |= changes | {"clip_skip": 0, "instance_prompt": PROMPT, "instance_prompts": {}}
    word = {"placeholder_token": WORD, "replaces": PROMPT, "initializer": INITIALIZER, "tuned": "embedding"}
    params["train_textual_inversion"] |= changes | word | {"clip_skip": 0, "learning_rate": 1e-4, "lr_scheduler": "cosine"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def encode(setup: Setup) -> dict[str, float]:
    """Run the two encoding stages; seconds of each."""
    write_params(setup, setup.work)
    return {
        "images": setup.run("-m", "stages.encode_images", "--images", "raw", "--vae", setup.model / "vae", "--out", "images"),
        "captions": setup.run(
            "-m", "stages.encode_captions", "--dataset", "dataset", "--model", setup.model, "--out", "captions"
        ),
    }


def ours(setup: Setup, kind: str, tuned: str = "lora", compiled: bool = False) -> Contender:
    """Our stage."""
    inputs: list[str | Path] = ["--class-images", setup.work / "class_images", "--rank", str(setup.options.rank)]
    if kind == "text2img":
        inputs += ["--captions", setup.work / "captions"]
    if kind == "textual_inversion":
        inputs = ["--vectors", "1"]
    common = ["--images", setup.work / "images", "--model", setup.model, "--seed", "0"]
    result = "out/*.safetensors" if tuned == "lora" else "out/unet/*.safetensors"
    return Contender("timed.py", [f"stages.train_{kind}", *inputs, *common, "--out", "out"], result, tuned, compiled)


def script(setup: Setup, kind: str) -> Contender:
    """Diffusers' script."""
    options = setup.options
    arguments: dict[str, Any] = {
        "pretrained_model_name_or_path": setup.model,
        "resolution": options.resolution,
        "train_batch_size": options.batch_size,
        "max_train_steps": options.steps,
        "learning_rate": 1e-4,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 10**6,
        "seed": 0,
        "output_dir": "out",
        "mixed_precision": {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}[options.dtype],
    }
    of_kind: dict[str, dict[str, Any]] = {
        "text2img": {"train_data_dir": setup.work / "dataset/train", "caption_column": "caption", "rank": options.rank},
        "dreambooth": {"instance_data_dir": setup.work / "instance", "instance_prompt": PROMPT, "rank": options.rank},
        "textual_inversion": {
            "train_data_dir": setup.work / "instance",
            "placeholder_token": WORD,
            "initializer_token": INITIALIZER,
            "repeats": 1,
            "save_steps": 10**6,
        },
    }
    data = of_kind[kind]
    flags = ["--center_crop", *(["--random_flip"] if kind == "text2img" else [])]
    words = [word for name, value in (arguments | data).items() for word in (f"--{name}", str(value))]
    return Contender("timed.py", [options.diffusers / SCRIPTS[kind], *words, *flags], "out/*.safetensors")


def bare(setup: Setup, mode: str) -> Contender:
    """The UNet alone."""
    names = ("rank", "batch_size", "threads", "device", "dtype")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(setup.options, name)))]
    files = ["--model", setup.model, "--images", setup.work / "images", "--captions", setup.work / "captions"]
    return Contender("bare_unet.py", [mode, *files, *words])


def contenders(setup: Setup, kind: str) -> dict[str, Contender]:
    """What is measured beside each other, by the names it has in the table."""
    options = setup.options
    found = {LIMIT: bare(setup, LIMIT), f"{kind}, ours": ours(setup, kind)}
    if options.compiled:
        found[LIMIT + COMPILED] = bare(setup, LIMIT + COMPILED)
        found[f"{kind}, ours{COMPILED}"] = ours(setup, kind, compiled=True)
    if options.diffusers is not None:
        found[f"{kind}, script"] = script(setup, kind)
    if kind == "text2img" and not options.sd1:
        found[FULL] = ours(setup, "text2img", tuned="full")
        for mode in (FORWARD, FORWARD_ADAPTERS, BY_PEFT, ALL_WEIGHTS):
            found[mode] = bare(setup, mode)
    return found
