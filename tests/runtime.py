"""The section `runtime` of a test."""

from typing import Any

CPU: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "dtype": "float32",
    "deterministic": True,
    "tf32": False,
    "cuda_graphs": True,
}
