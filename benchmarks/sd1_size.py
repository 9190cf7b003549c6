"""A few steps of a LoRA on a UNet of Stable Diffusion 1.5's size, on the CPU: time and memory.

`python benchmarks/sd1_size.py [--json FILE]` trains the stage train_text2img for a few steps at 512 px and batch 1, on random
weights, with and without gradient checkpointing, each in a process of its own. Memory is the peak resident set of that
process; more than `--limit` GB of it in either run is a failure (status 1). Takes 2 GB of disk for a while.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from sd1 import SD1
from turns import peak_memory

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RUNS = {"as it is": False, "gradient checkpointing": True}


def make_world(work: Path, resolution: int) -> None:
    """A model with random weights, and encoded images and captions of its width."""
    # In a process of its own: this one stays small, because a child's peak memory counts its parent's.
    subprocess.run([sys.executable, ROOT / "benchmarks/sd1.py", work / "model", ROOT / "data/mini/base/tokenizer"], check=True)
    import torch

    from stages.encoding.encoded_files import EncodedCaptions, EncodedImages, write_encoded

    torch.manual_seed(0)
    names, width = ["1.png", "2.png"], SD1["unet"]["cross_attention_dim"]
    mean = torch.randn(2, 2, 4, resolution // 8, resolution // 8)
    write_encoded(EncodedImages(names, mean, torch.full_like(mean, 0.1), 0.18215, resolution), work / "images")
    (work / "class").mkdir()
    prompt_embeds = torch.randn(2, 77, width)
    write_encoded(EncodedCaptions(names, ["one", "two"], prompt_embeds, torch.zeros(77, width), 0), work / "captions")


def write_params(work: Path, options: argparse.Namespace, gradient_checkpointing: bool) -> None:
    """Write params.yaml for the training: the committed settings, and what the benchmark sets."""
    from stages.pipeline.compose import group_values

    values = group_values("train_text2img", ROOT / "conf")
    values |= {"max_train_steps": options.steps, "train_batch_size": 1, "gradient_checkpointing": gradient_checkpointing}
    switches = {"deterministic": True, "tf32": False, "cuda_graphs": True}
    runtime = {"device": "cpu", "threads": options.threads, "dtype": options.dtype} | switches
    housekeeping = {"checkpointing_steps": 10**6, "logging_steps": 10}
    params = {"train_text2img": values, "runtime": runtime, "housekeeping": housekeeping}
    (work / "params.yaml").write_text(yaml.safe_dump(params))


def measure(work: Path, options: argparse.Namespace, gradient_checkpointing: bool) -> dict[str, Any]:
    """Train; seconds of the steps and in all, peak memory in bytes, size of the LoRA."""
    write_params(work, options, gradient_checkpointing)
    words = [
        "--images",
        "images",
        "--captions",
        "captions",
        "--class-images",
        "class",
        "--model",
        "model",
        "--rank",
        str(options.rank),
        "--seed",
        "0",
        "--out",
        "lora",
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "DVC_ROOT": str(work),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    started = time.perf_counter()
    with (work / "log").open("w+") as log:
        command = [sys.executable, "-m", "stages.train_text2img", *words]
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        log.seek(0)
        said = log.read()
    training = re.search(r"([\d.]+) s of training", said)
    if status or training is None:
        raise SystemExit(said)
    return {
        "seconds_per_step": float(training[1]) / options.steps,
        "seconds": time.perf_counter() - started,
        "peak_memory": peak_memory(usage),
        "lora": (work / "lora/pytorch_lora_weights.safetensors").stat().st_size,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the frozen weights")
    parser.add_argument("--limit", type=float, default=12.0, help="GB of memory")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        make_world(Path(folder), options.resolution)
        for name, gradient_checkpointing in RUNS.items():
            figures[name] = figure = measure(Path(folder), options, gradient_checkpointing)
            print(
                f"{name:24}{figure['seconds_per_step']:8.1f} s a step, {figure['seconds']:.0f} s in all, "
                f"peak memory {figure['peak_memory'] / 1e9:.2f} GB, "
                f"LoRA of {figure['lora'] / 1e6:.2f} MB",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")
    if any(figure["peak_memory"] > options.limit * 1e9 for figure in figures.values()):
        raise SystemExit(f"more than {options.limit:g} GB")


if __name__ == "__main__":
    main()
