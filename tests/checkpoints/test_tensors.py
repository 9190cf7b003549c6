import json
import struct

import numpy as np
import pytest
from safetensors import safe_open

from stages.checkpoints.tensors import LazyTensor, open_safetensors, read_recipe
from stages.checkpoints.writing import write_safetensors


def lazy(array, dtype="F32"):
    return LazyTensor(array.shape, dtype, lambda: array)


TENSORS = {
    "b": lazy(np.arange(6, dtype=np.float32).reshape(2, 3).T),
    "a": lazy(np.array(2.5, np.float64), "F64"),
    "ids": lazy(np.arange(300), "I64"),
}


def test_written_and_read_again(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", TENSORS, "float16", {"alpha": 0.7})
    read = open_safetensors(tmp_path / "x.safetensors")
    assert {key: (tensor.dtype, tensor.shape) for key, tensor in read.items()} == {
        "a": ("F16", ()),
        "b": ("F16", (3, 2)),
        "ids": ("I64", (300,)),
    }
    assert np.array_equal(read["b"].read(), [[0, 3], [1, 4], [2, 5]])
    assert np.array_equal(read["ids"].read(), np.arange(300)), "integers are copied, not rounded"
    assert read_recipe(tmp_path / "x.safetensors") == {"alpha": 0.7}


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", TENSORS, "float32", {"x": 1, "y": 2})
    write_safetensors(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())), "float32", {"y": 2, "x": 1})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("values", [np.nan, -np.inf, 7e4])
def test_what_is_not_finite_is_named(tmp_path, values):
    with pytest.raises(ValueError, match=r"in float16: bad$"):
        write_safetensors(tmp_path / "x.safetensors", {**TENSORS, "bad": lazy(np.array([values], np.float32))}, "float16", {})
    assert not (tmp_path / "x.safetensors").exists()


def test_bfloat16_is_read_exactly_as_float32(tmp_path):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\x80\x3f\x49\x40")
    tensor = open_safetensors(tmp_path / "x.safetensors")["x"]
    assert (tensor.dtype, tensor.read().dtype) == ("BF16", np.float32)
    assert tensor.read().tolist() == [1.0, 3.140625]


def test_there_is_one_metadata_key(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", TENSORS, "float32", {"x": 1, "y": 2})
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert list(file.metadata()) == ["recipe"]


@pytest.mark.parametrize("metadata", [None, {"recipe": "soup of the day"}, {"recipe": "[1]"}])
def test_another_tools_file_has_no_recipe(tmp_path, metadata):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(1)}, tmp_path / "x.safetensors", metadata=metadata)
    assert read_recipe(tmp_path / "x.safetensors") == {}
