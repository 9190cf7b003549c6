import json
import struct

import numpy as np
import pytest

from stages.checkpoints.files.tensors import open_safetensors, read_recipe


def test_bfloat16_is_read_exactly_as_float32(tmp_path):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\x80\x3f\x49\x40")
    tensor = open_safetensors(tmp_path / "x.safetensors")["x"]
    assert (tensor.dtype, tensor.read().dtype) == ("BF16", np.float32)
    assert tensor.read().tolist() == [1.0, 3.140625]


DEEP = '{"a":' * 500 + "1" + "}" * 500
DEEPER = "[" * 100_000


@pytest.mark.parametrize("recipe", [None, "soup of the day", "[1]", DEEP, DEEPER])
def test_another_tools_file_has_no_recipe(tmp_path, recipe):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(1)}, tmp_path / "x.safetensors", metadata=recipe and {"recipe": recipe})
    assert read_recipe(tmp_path / "x.safetensors") == {}
