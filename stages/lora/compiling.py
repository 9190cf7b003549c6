"""Compilation of a UNet, where it saves more time than it costs.

On a CPU it is compiled as a whole, C++ from end to end: that saves more than twice as much as compiling the blocks that it
repeats. On a GPU these blocks alone are compiled, as diffusers advises, because they hold most of what there is to save, and
compile in a fraction of the time. What was compiled is kept, and found again by the next run of the same shapes.

Whether it pays is reckoned from the number of steps, never from a clock: a run is compiled or not each time alike, resumed or
not, and ends with the same bytes.
"""

import importlib.util
import os
import shutil
from typing import Any

import torch
from torch._functorch import config as autograd_config

from stages.lora.expectations import EXPECTED
from stages.lora.processes import process_number

CPU_OPTIONS = {"cpp_wrapper": True, "cpp_wrapper_build_separate": True}
"""The calls of the kernels in C++ too, 6 % of a step; compiled on their own, or the compiler takes twice as long."""


def compile_unet(unet: Any, steps: int, device: torch.device) -> None:
    """Compile the UNet, in place, if that pays; say so.

    Args:
        unet: ready for training, on its device, with batches of one shape: each other shape would be compiled anew.
        steps: forward and backward passes of the whole run.
        device: where it runs.
    """
    expected = EXPECTED.get(device.type)
    if expected is None or unet.is_gradient_checkpointing or not _can_compile(device):
        return
    matrices = sum(parameter.ndim > 1 for parameter in unet.parameters())
    saved, cost = expected.saved * matrices * steps, expected.cost * matrices
    if saved <= cost:
        return
    if device.type == "cuda":
        unet.compile_repeated_blocks()
    else:
        # the cache's key holds both graphs of an autograd function, so a changed one is not found
        autograd_config.autograd_cache_allow_custom_autograd_functions = True
        unet.compile(dynamic=False, options=CPU_OPTIONS)
    if process_number() == 0:
        print(
            f"the UNet is compiled: that takes about {cost:.0f} s, less where it was done before, "
            f"and saves about {saved / 60:.0f} min",
            flush=True,
        )


def _can_compile(device: torch.device) -> bool:
    """Whether there is what torch needs: a C++ compiler, or Triton for a GPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name)
