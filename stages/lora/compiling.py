"""Compilation of a UNet, where it saves more time than it costs.

On a CPU it is compiled as a whole, which saves twice as much as compiling the blocks that it repeats; on a GPU these blocks
alone, as diffusers advises, because they hold most of what there is to save, and compile in a fraction of the time.

Whether it pays is reckoned from the model, the batch and the number of steps, never from a clock: a run is compiled or not
each time alike, resumed or not, and ends with the same bytes.
"""

import importlib.util
import os
import shutil
from typing import Any

import torch

from stages.lora.expectations import EXPECTED, expected_seconds
from stages.lora.processes import process_number


def compile_unet(unet: Any, latents: torch.Size, steps: int, device: torch.device) -> None:
    """Compile the UNet, in place, if that pays; say so.

    Args:
        unet: ready for training, on its device.
        latents: (B, C, h, w), of a batch, the same in every step: each other shape is compiled anew.
        steps: forward and backward passes of the whole run.
        device: where it runs.
    """
    expected = EXPECTED.get(device.type)
    if expected is None or unet.is_gradient_checkpointing or not _can_compile(device):
        return
    saved = expected.saved * expected_seconds(unet, latents, steps, device)
    if saved <= expected.cost:
        return
    if device.type == "cuda":
        unet.compile_repeated_blocks()
    else:
        unet.compile(dynamic=False)
    if process_number() == 0:
        print(
            f"the UNet is compiled: that takes about {expected.cost:.0f} s, less where it was done before, "
            f"and saves about {saved / 60:.0f} min",
            flush=True,
        )


def _can_compile(device: torch.device) -> bool:
    """Whether there is what torch needs: a C++ compiler, or Triton for a GPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)
