"""Running the training stages as their command line does, and killing them."""

import csv
import hashlib
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from stages.pipeline.command import run
from tests.lora.settings import conf_values
from tests.runtime import CPU

ROOT = Path(__file__).parents[2]
RESOLUTION = 32
PROMPTS = {"instance_prompt": "asuka", "clip_skip": 0}
TEXT2IMG: dict[str, Any] = {
    "images": "images.safetensors",
    "captions": "captions.safetensors",
    "class_images": "no-class-images",
    "model": "model",
    "rank": 2,
    "seed": 0,
}
DREAMBOOTH: dict[str, Any] = {name: value for name, value in TEXT2IMG.items() if name != "captions"}
WORD = {"placeholder_token": "<asuka>", "replaces": "asuka", "initializer": "a portrait", "clip_skip": 0}
TEXTUAL_INVERSION: dict[str, Any] = {"images": "images.safetensors", "model": "model", "vectors": 2, "seed": 0}
TRAININGS = {"train_text2img": TEXT2IMG, "train_dreambooth": DREAMBOOTH}


def write_params(root: Path, **changes) -> None:
    """params.yaml with the committed settings, made small; `changes` by section, those of housekeeping with a training's."""
    small = {"max_train_steps": 12, "train_batch_size": 2}
    params = {
        "runtime": dict(CPU),
        "housekeeping": {"logging_steps": 5, "checkpointing_steps": 2},
        "encode_images": conf_values("encode_images", resolution=RESOLUTION),
        "encode_captions": conf_values("encode_captions", clip_skip=0),
        "class_images": conf_values(
            "class_images", resolution=RESOLUTION, clip_skip=0, num_inference_steps=2, class_prompts=["a portrait"]
        ),
        "train_text2img": conf_values("train_text2img", **small),
        "train_dreambooth": conf_values("train_dreambooth", **small, **PROMPTS),
        "train_textual_inversion": conf_values("train_textual_inversion", **small, **WORD),
    }
    for section, values in changes.items():
        for name, value in values.items():
            params["housekeeping" if name in params["housekeeping"] else section][name] = value
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def arguments(**options) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def run_stage(name: str, **options) -> None:
    """Run a stage in this process as its command line does."""
    module = importlib.import_module(f"stages.{name}")
    run(module.stage, arguments(**options))


def environment() -> dict[str, str]:
    """That of a stage in a process of its own."""
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_at_a_checkpoint(root: Path, name: str, patience: float = 0.0, **options) -> None:
    """Run a stage in processes of its own and end them with SIGKILL, `patience` seconds after the first checkpoint."""
    command = [sys.executable, "-m", f"stages.{name}", *arguments(**options)]
    before = newest_checkpoint(root)
    process = subprocess.Popen(command, cwd=root, env=environment(), start_new_session=True)
    until = time.monotonic() + 600
    while newest_checkpoint(root) == before:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.002)
    time.sleep(patience)
    os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
    assert process.wait() == -signal.SIGKILL


def newest_checkpoint(root: Path) -> int:
    """When the last checkpoint was written; 0 where there is none."""
    return max((path.stat().st_mtime_ns for path in (root / ".checkpoints").rglob("checkpoint.pt")), default=0)


def folder_of(root: Path, out: str, stage: str = "train_text2img") -> Path:
    """Where the run that writes `out` keeps what it needs to go on."""
    (folder,) = (path for path in (root / ".checkpoints" / stage / out).iterdir() if path.name != "damaged")
    return folder


def history_of(folder: Path) -> list[dict[str, str]]:
    """The rows of the history of a training."""
    with (folder / "history.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def held_out_losses(folder: Path) -> dict[int, float]:
    """The losses of held-out images in the history of a training, by the steps after which they were measured."""
    return {int(row["step"]): float(row["held_out_loss"]) for row in history_of(folder) if row["held_out_loss"]}
