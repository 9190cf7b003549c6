"""Compilation of the blocks that a UNet repeats, where it saves more time than it costs.

Whether it does is reckoned from the model, the batch and the number of steps, never from a clock: a run is compiled or not
each time alike, resumed or not, and ends with the same bytes.
"""

import importlib.util
import math
import os
import shutil
from dataclasses import dataclass
from typing import Any

import torch

from stages.lora.processes import process_number


@dataclass(frozen=True)
class Expectation:
    """What compiling does on a kind of device.

    Attributes:
        flops: that the steps of a training reach in a second.
        saved: share of a step.
        cost: seconds, the first time.
    """

    flops: float
    saved: float
    cost: float


EXPECTED = {"cpu": Expectation(flops=45e9, saved=0.2, cost=100.0), "cuda": Expectation(flops=40e12, saved=0.2, cost=90.0)}
"""Of two CPU cores as `benchmarks/train.py` measures them; of a GPU by estimate."""


def compile_repeated_blocks(unet: Any, latents: torch.Size, steps: int, device: torch.device) -> None:
    """Compile the blocks, in place, if that pays; say so.

    Args:
        unet: ready for training, on its device.
        latents: (B, C, h, w), of a batch, the same in every step: each other shape is compiled anew.
        steps: forward and backward passes of the whole run.
        device: where it runs.
    """
    expected = EXPECTED.get(device.type)
    if expected is None or unet.is_gradient_checkpointing or not _can_compile(device):
        return
    saved = saved_seconds(unet, latents, steps, expected)
    if saved <= expected.cost:
        return
    unet.compile_repeated_blocks()
    if process_number() == 0:
        print(
            f"the transformer blocks are compiled: that takes about {expected.cost:.0f} s, less where it was done before, "
            f"and saves about {saved / 60:.0f} min",
            flush=True,
        )


def saved_seconds(unet: Any, latents: torch.Size, steps: int, expected: Expectation) -> float:
    """What compiling saves in a run, by estimate.

    A backward pass through frozen weights takes as long as the forward pass, and twice as long where they are trained.
    """
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in unet.parameters())
    return steps * (2 + trained / total) * forward_flops(unet, latents) / expected.flops * expected.saved


def forward_flops(unet: Any, latents: torch.Size) -> float:
    """Floating-point operations of a forward pass, those of its matrices: every weight meets every place of its level once."""
    count, height, width = latents[0], *latents[-2:]
    lowest = len(unet.config["block_out_channels"]) - 1
    return sum(
        2 * parameter.numel() * count * math.ceil(height / 2**level) * math.ceil(width / 2**level)
        for name, parameter in unet.named_parameters()
        if parameter.ndim > 1 and (level := _level(name, lowest)) is not None
    )


def _level(name: str, lowest: int) -> int | None:
    """How often the latents were halved where the weight is; None for a weight that sees no places."""
    part, _, rest = name.partition(".")
    if part == "time_embedding" or "time_emb_proj" in name:
        return None
    if part == "mid_block":
        return lowest
    if part not in ("down_blocks", "up_blocks"):
        return 0
    number = int(rest.partition(".")[0])
    return number if part == "down_blocks" else lowest - number


def _can_compile(device: torch.device) -> bool:
    """Whether there is what torch needs: a C++ compiler, or Triton for a GPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)
