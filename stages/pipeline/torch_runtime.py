"""Torch's threads, device and determinism, set once when a stage begins."""

import ctypes
import os

import torch

from stages.pipeline.config import RuntimeConfig

MALLOC = {-1: 2**30, -2: 2**26, -3: 2**25}
"""glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD, in bytes."""


def prepare(runtime: RuntimeConfig) -> torch.device:
    """Set threads and deterministic algorithms, and choose the device.

    Raises:
        ValueError: `runtime.device` is cuda and there is no GPU.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "runtime.device: cuda asked for and there is no GPU; run where there is one, or set runtime.device=cpu"
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_up_process(runtime.threads, deterministic=True)
    torch.backends.cudnn.benchmark = False
    if runtime.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def set_up_process(threads: int, deterministic: bool) -> None:
    """What a process that computes needs, whether it is a stage's own or one of several that train together."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs a pass over every new tensor


def keep_freed_memory() -> None:
    """Have the C library keep freed memory of up to 1 GiB for what comes next.

    A step of training frees what the next one needs again: without this, a step of the mini world's took 3,000 page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it
    if mallopt is not None:
        for parameter, value in MALLOC.items():
            mallopt(parameter, value)


def weight_dtype(runtime: RuntimeConfig) -> torch.dtype:
    """The dtype of frozen weights and activations."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[runtime.dtype]


def device_name(device: torch.device) -> str:
    """What computes, as results depend on it: the GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
