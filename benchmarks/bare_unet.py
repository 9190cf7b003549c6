"""Steps of a UNet alone on one fixed batch, in turns (see turns.py): what no training can go below.

`python benchmarks/bare_unet.py TIMES STEPS TURN MODE --model MODEL --images IMAGES --captions CAPTIONS ...`; the encoded images
and captions are those of our stages. The adapters' modes also note a step's floating-point operations and how many a second
one large matrix product reaches.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from contenders import ALL_WEIGHTS, BY_PEFT, COMPILED, FORWARD, FORWARD_ADAPTERS, LIMIT, ROOT
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from turns import Turns, wait_for_device

from stages.lora.adapters import add_adapter, trained_parameters
from stages.lora.config import AdapterConfig
from stages.lora.fused import fuse_linear_layers
from stages.lora.tuned_model import cast_frozen, compile_blocks, load_unet, move
from stages.pipeline.compose import group_values
from stages.pipeline.torch_runtime import keep_freed_memory

LIMIT_COMPILED = LIMIT + COMPILED
MODES = (FORWARD, FORWARD_ADAPTERS, LIMIT, LIMIT_COMPILED, BY_PEFT, ALL_WEIGHTS)
MATRIX = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the large product."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("turn", type=int)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], required=True)
    return parser.parse_args()


def autocasts(options: argparse.Namespace) -> bool:
    """Whether operations cast what they are given, as where all weights are trained, or PEFT's layers are as they are."""
    return options.dtype != "float32" and options.mode in (ALL_WEIGHTS, LIMIT_COMPILED, BY_PEFT)


def prepare_unet(options: argparse.Namespace, device: torch.device) -> Any:
    """The UNet of a mode, on its device."""
    unet: Any = load_unet(options.model)
    if options.mode == ALL_WEIGHTS:
        unet.requires_grad_(True)
    elif options.mode != FORWARD:
        values = group_values("train_text2img", ROOT / "conf")
        config = AdapterConfig(**{name: values[name] for name in AdapterConfig.__dataclass_fields__})
        add_adapter(unet, options.rank, config, config.target_modules, seed=0)
    cast_frozen(unet, getattr(torch, options.dtype))
    move(unet, device)
    if options.mode == LIMIT_COMPILED:
        compile_blocks(unet, device)
    elif options.mode != BY_PEFT:
        fuse_linear_layers(unet, torch.float32 if autocasts(options) else getattr(torch, options.dtype))
    return unet.train()


def matrix_throughput(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large product of square matrices; the best of a few."""
    size = MATRIX[device.type]
    matrix = torch.rand(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        matrix @ matrix
        wait_for_device()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def main() -> None:
    """Make the steps."""
    options = parse()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    latents = load_file(options.images)["mean"][: options.batch_size, 0].contiguous().to(device)
    prompt_embeds = load_file(options.captions)["prompt_embeds"][: options.batch_size].to(device)
    timesteps = torch.arange(len(latents), device=device) * 100
    unet, casts = prepare_unet(options, device), autocasts(options)
    if not casts:
        latents, prompt_embeds = latents.to(dtype), prompt_embeds.to(dtype)
    backward = options.mode not in (FORWARD, FORWARD_ADAPTERS)
    weights = list(trained_parameters(unet).values())

    def step() -> None:
        with torch.set_grad_enabled(backward), torch.autocast(device.type, dtype, enabled=casts):
            loss = unet(latents, timesteps, prompt_embeds, return_dict=False)[0].square().mean()
        if backward:
            loss.backward()
        for weight in weights:
            weight.grad = None

    turns = Turns(options.times, options.steps, options.turn)
    if options.mode == LIMIT:
        turns.notes["matrix_throughput"] = matrix_throughput(device, dtype)
        with FlopCounterMode(display=False) as counter:
            step()
        turns.notes["flops"] = counter.get_total_flops()
    for _ in range(options.steps):
        step()
        turns.step_ended()


if __name__ == "__main__":
    main()
