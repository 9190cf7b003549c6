"""Torch's threads, device, precision and determinism, set once when a stage begins."""

import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from stages.pipeline.config import RuntimeConfig

MALLOC = {-1: 2**30, -2: 2**26, -3: 2**25}
"""glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD, in bytes."""

AVAILABLE: Mapping[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "xpu": torch.xpu.is_available,
}
"""Whether there is a device of each kind but the CPU."""


def prepare(runtime: RuntimeConfig) -> torch.device:
    """Set threads, precision and determinism, and choose the device.

    Raises:
        ValueError: `runtime.device` names a kind of GPU, and there is none of it.
    """
    device = runtime.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not AVAILABLE[device]():
        raise ValueError(
            f"runtime.device: {device} asked for and there is no GPU of this kind; run where there is one, or set "
            "runtime.device=cpu"
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_up_process(runtime.threads, runtime.deterministic, runtime.tf32)
    return torch.device(device)


def set_up_process(threads: int, deterministic: bool, tf32: bool) -> None:
    """What a process that computes needs, whether it is a stage's own or one of several that train together.

    With `deterministic`, attention is left to the kernels whose backward pass gives the same bytes each time: FlashAttention in
    half precision and the memory-efficient ones, which take to it once it is demanded and not only wished for (`warn_only`).
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs a pass over every new tensor
    torch.backends.cudnn.benchmark = False  # it would choose by the clock
    torch.backends.cuda.enable_cudnn_sdp(not deterministic)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32  # torch's own default is True


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
    """What computes, as results depend on it: the GPU's name, or "cpu" or "mps"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.xpu.get_device_name(device) if device.type == "xpu" else device.type


def computation(runtime: RuntimeConfig, device: torch.device) -> dict[str, Any]:
    """What the last bits of a result depend on besides its inputs, for a file's metadata; `runtime_of` reads it."""
    of_gpus = (
        {} if device.type == "cpu" else {name: getattr(runtime, name) for name in ("deterministic", "tf32", "cuda_graphs")}
    )
    return {"device": device_name(device), "threads": runtime.threads, "dtype": runtime.dtype, **of_gpus}


def runtime_of(computed: Mapping[str, Any]) -> RuntimeConfig:
    """The settings that `computation` wrote down."""
    device = computed["device"]
    if device not in ("cpu", "mps"):
        device = "xpu" if torch.xpu.is_available() else "cuda"
    switches = {"deterministic": True, "tf32": False, "cuda_graphs": True}
    known = {name: computed.get(name, value) for name, value in switches.items()}
    return RuntimeConfig(device, computed["threads"], computed["dtype"], **known)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, so that a clock tells what it took."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
