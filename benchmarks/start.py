"""How long each stage takes to begin its work, beside the import of the libraries that it needs and nothing else.

    python benchmarks/start.py FOLDER       # where the default experiment has run (make repro); nothing in it is changed

A stage has begun when it announces the first thing that it counts: an image, a step. The command is that of dvc.yaml, with the
output elsewhere. Each is started once to warm the machine's cache of files, and then a few times; the median counts.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALPHA, RANK = "0.7", "8"
OF_TRAINING = f"--class-images data/class_images/a{ALPHA} --model data/merged/a{ALPHA} --rank {RANK} --seed 0"
STAGES = {
    "encode_images": "--images data/raw --vae data/vae",
    "class_images": f"--model data/merged/a{ALPHA}",
    "train_text2img": "--images data/encoded/images.safetensors --captions data/encoded/captions-a0.7.safetensors "
    + OF_TRAINING,
    "train_dreambooth": "--images data/encoded/images.safetensors " + OF_TRAINING,
    "generate": f"--model data/merged/a{ALPHA} --lora data/lora/text2img-a{ALPHA}-r{RANK}-s0",
    "embed": f"--images data/images/a{ALPHA}",
    "caption": "--images data/raw",
}
"""The options of each stage, without --out."""
LIBRARIES = """
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
import peft, accelerate
"""
BEGIN = """
import os, runpy, sys, time
import psutil
import stages.pipeline.progress as progress
def track(*_, **__):
    print(time.time() - psutil.Process().create_time(), flush=True)
    os._exit(0)
progress.track = track
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
END = "import time, psutil; print(time.time() - psutil.Process().create_time())"


def main(argv: Sequence[str] | None = None) -> None:
    """Start each of them, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args(argv)
    libraries = seconds(["-c", LIBRARIES + END], options)
    print(f"{'the libraries alone':20}{libraries:6.2f} s")
    for name, words in STAGES.items():
        with tempfile.TemporaryDirectory() as elsewhere:
            command = ["-c", BEGIN, f"stages.{name}", *words.split(), "--out", f"{elsewhere}/out"]
            found = seconds(command, options)
        print(f"{name:20}{found:6.2f} s, {found / libraries:.2f} x the libraries", flush=True)


def seconds(command: Sequence[str], options: argparse.Namespace) -> float:
    """What a Python program says it took, the median of some starts after one."""
    return statistics.median([_once(command, options) for _ in range(options.times + 1)][1:])


def _once(command: Sequence[str], options: argparse.Namespace) -> float:
    fixed = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as checkpoints:
        places = {"PIPELINE_CHECKPOINTS": checkpoints}
        done = subprocess.run(
            [sys.executable, *command], cwd=options.folder, env=os.environ | fixed | places, capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit((done.stdout + done.stderr)[-3000:])
    return float(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
