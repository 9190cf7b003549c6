"""What is fused: each weight of the model plus what the file adds to it, whatever the file's names are."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.checkpoints.fusing import fuse
from stages.checkpoints.model import read_model
from tests.checkpoints.foreign_loras import FILES, QUERY, pair, save
from tests.checkpoints.tiny import random_weights, save_diffusers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return read_model(save_diffusers(tmp_path_factory.mktemp("model"), random_weights()), None)


@pytest.mark.parametrize("weight", [1.0, -0.5])
@pytest.mark.parametrize("name", FILES)
def test_each_weight_gets_what_the_file_adds(tmp_path, model, name, weight):
    fused = fuse(model, save(tmp_path, name), weight)
    truth = FILES[name][1]
    for component, part in model.components.items():
        for key, tensor in part.tensors.items():
            before, after = tensor.read(), fused.components[component].tensors[key].read()
            change = truth.get(key.removesuffix(".weight"))
            if change is None or not key.endswith(".weight"):
                assert np.array_equal(after, before)
            else:
                np.testing.assert_allclose(after, before + weight * change, rtol=1e-5, atol=1e-5)
    assert fused.components["unet"].recipe["lora"]["weight"] == weight


def test_dora_is_refused(tmp_path, model):
    parts = pair(QUERY, 2)
    tensors = {f"unet.{QUERY}.lora_A.weight": parts["down"], f"unet.{QUERY}.lora_B.weight": parts["up"]}
    save_file(tensors | {f"unet.{QUERY}.lora_magnitude_vector": np.ones(8, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: DoRA is not fused"):
        fuse(model, tmp_path / "x.safetensors", 1.0)
