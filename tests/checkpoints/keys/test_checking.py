"""Every key, shape and dtype is compared with the config, both ways, and all that is wrong is said at once."""

import numpy as np
import pytest

from stages.checkpoints.files.tensors import LazyTensor
from stages.checkpoints.keys.checking import conform
from stages.checkpoints.keys.key_maps import TensorSpec

SPECS = [TensorSpec("a", "x.a", (2, 3), (2, 3, 1, 1)), TensorSpec("b", "x.b", (4,), (4,))]


def lazy(shape, dtype="F32"):
    return LazyTensor(shape, dtype, lambda: np.zeros(shape, np.float32))


def test_shapes_become_those_of_the_layout():
    tensors = conform({"x.a": lazy((2, 3)), "x.b": lazy((4,))}, SPECS, "ldm")
    assert {key: tensor.shape for key, tensor in tensors.items()} == {"x.a": (2, 3, 1, 1), "x.b": (4,)}


def test_all_problems_are_named_in_one_line():
    tensors = {"a": lazy((3, 2)), "c": lazy((1,)), "d": lazy((1,), "I64")}
    with pytest.raises(ValueError, match=r"^1 missing: b; 2 unexpected: c, d; 1 wrong shape: a \(3, 2\) instead of \(2, 3\)$"):
        conform(tensors, SPECS, "diffusers")


@pytest.mark.parametrize("shape", [(1, 4), (4, 2), (2, 2), ()])
def test_only_trailing_ones_may_differ(shape):
    with pytest.raises(ValueError, match="1 wrong shape: b"):
        conform({"a": lazy((2, 3)), "b": lazy(shape)}, SPECS, "diffusers")


@pytest.mark.parametrize("dtype", ["I64", "BOOL", "U8"])
def test_integers_are_no_weights(dtype):
    with pytest.raises(ValueError, match=rf"1 not a float: b \({dtype}\)"):
        conform({"a": lazy((2, 3)), "b": lazy((4,), dtype)}, SPECS, "diffusers")
