"""Whether a checkpoint has exactly the tensors that its config describes: no key missing or unexpected, no other shape."""

from collections.abc import Sequence
from typing import Literal

from stages.checkpoints.files.tensors import FLOATS, LazyTensor, LazyTensors
from stages.checkpoints.keys.key_maps import TensorSpec
from stages.checkpoints.messages import listed

Layout = Literal["diffusers", "ldm"]


def conform(tensors: LazyTensors, specs: Sequence[TensorSpec], layout: Layout) -> dict[str, LazyTensor]:
    """The tensors that `specs` name, in the shapes of that layout.

    Shapes may differ by trailing ones: some tools write a linear layer as a 1x1 convolution, and back.

    Raises:
        ValueError: Keys are missing, unexpected, or of a wrong shape or dtype; all are named in one message.
    """
    shapes = {
        spec.name if layout == "diffusers" else spec.ldm_name: spec.shape if layout == "diffusers" else spec.ldm_shape
        for spec in specs
    }
    both = sorted(shapes.keys() & tensors.keys())
    problems = {
        "missing": sorted(shapes.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - shapes.keys()),
        "wrong shape": [
            f"{key} {tensors[key].shape} instead of {shapes[key]}"
            for key in both
            if _trimmed(tensors[key].shape) != _trimmed(shapes[key])
        ],
        "not a float": [f"{key} ({tensors[key].dtype})" for key in both if tensors[key].dtype not in FLOATS],
    }
    if any(problems.values()):
        raise ValueError("; ".join(f"{len(keys)} {kind}: {listed(keys)}" for kind, keys in problems.items() if keys))
    return {key: tensors[key].reshape(shape) for key, shape in shapes.items()}


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
