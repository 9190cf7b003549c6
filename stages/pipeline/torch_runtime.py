"""Torch's threads, device and determinism, set once when a stage begins."""

import os

import torch

from stages.pipeline.config import RuntimeConfig
from stages.pipeline.resume import checkpoints_folder


def prepare(runtime: RuntimeConfig) -> torch.device:
    """Set threads and deterministic algorithms, and choose the device.

    Raises:
        ValueError: `runtime.device` is cuda and there is no GPU.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "runtime.device: cuda asked for and there is no GPU; run where there is one, or set runtime.device=cpu"
        )
    torch.set_num_threads(runtime.threads)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(checkpoints_folder() / "compiled"))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs a pass over every new tensor
    torch.backends.cudnn.benchmark = False
    if runtime.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def weight_dtype(runtime: RuntimeConfig) -> torch.dtype:
    """The dtype of frozen weights and activations."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[runtime.dtype]
