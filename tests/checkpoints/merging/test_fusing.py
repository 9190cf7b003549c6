"""What is fused: each weight of the model plus what the file adds to it, whatever the file's names are."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.checkpoints.file_names import LORA_FILE, UNET_FILE
from stages.checkpoints.files.writing import write_safetensors
from stages.checkpoints.merging.fusing import fuse
from stages.checkpoints.model import read_model
from tests.checkpoints.adapters.foreign_loras import CONVOLUTION, FILES, INCOMPLETE, QUERY, pair, save, save_incomplete
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


def test_a_directory_stands_for_the_lora_in_it(tmp_path, model):
    file = save(tmp_path, "no alpha").rename(tmp_path / LORA_FILE)
    key = f"{QUERY}.weight"
    given = [fuse(model, path, 1.0).components["unet"] for path in (tmp_path, file)]
    assert np.array_equal(given[0].tensors[key].read(), given[1].tensors[key].read())
    assert given[0].recipe == given[1].recipe


@pytest.mark.parametrize("name", ["no alpha", "Tucker", "LoHa", "LoKr"])
@pytest.mark.parametrize("value", [np.nan, 1e9])
def test_what_cannot_be_written_is_named_with_its_files(tmp_path, model, name, value):
    tensors = {key: np.array(each, order="C") for key, each in FILES[name][0].items()}
    key = next(key for key, each in tensors.items() if each.ndim and ("attn1_to_q." in key or "conv1." in key))
    tensors[key][:] = value
    save_file(tensors, tmp_path / "lora.safetensors")
    weight = f"{CONVOLUTION if 'conv1' in key else QUERY}.weight"
    whole = fuse(model, tmp_path / "lora.safetensors", 1.0).components["unet"].tensors
    lora = rf"{tmp_path}/lora\.safetensors"
    fault = rf"{lora}: not a finite number \(NaN or Inf\)"
    if value == 1e9:
        fault = rf"{model.components['unet'].tensors[weight].files[0]} and {lora}: larger than float16 holds"
    with pytest.raises(ValueError, match=rf"^{fault}: {weight}$"):
        write_safetensors(tmp_path / "out.safetensors", whole, "float16", {})


def test_what_is_no_lora_is_refused_for_what_it_is(tmp_path, model):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/missing: no such file or directory: give a LoRA's file"):
        fuse(model, tmp_path / "missing", 1.0)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/{LORA_FILE}: no such LoRA file: give a LoRA's file"):
        fuse(model, tmp_path, 1.0)
    tuned = save_diffusers(tmp_path / "tuned", random_weights())
    for path in (tuned, tuned / "unet" / UNET_FILE):
        with pytest.raises(
            ValueError, match=rf"--lora: {tuned}/unet/{UNET_FILE} is the whole UNet .* export its directory by it"
        ):
            fuse(model, path, 1.0)


@pytest.mark.parametrize("setting", INCOMPLETE)
def test_what_is_not_all_that_was_trained_is_not_fused(tmp_path, model, setting):
    with pytest.raises(ValueError, match=rf"{LORA_FILE}: .*{setting}"):
        fuse(model, save_incomplete(tmp_path, setting), 1.0)


@pytest.mark.parametrize("module", [QUERY, CONVOLUTION])
def test_rows_of_dora_have_the_lengths_that_it_learnt(tmp_path, model, module):
    parts, lengths = pair(module, 2), np.arange(1, 9, dtype=np.float32)
    tensors = {f"unet.{module}.lora_A.weight": parts["down"], f"unet.{module}.lora_B.weight": parts["up"]}
    shaped = lengths if module == QUERY else lengths.reshape(1, 8, 1, 1)  # as PEFT has them
    save_file(tensors | {f"unet.{module}.lora_magnitude_vector": shaped}, tmp_path / "x.safetensors")
    before = model.components["unet"].tensors[f"{module}.weight"]
    change = np.tensordot(parts["up"].reshape(8, 2), parts["down"].reshape(2, -1), 1)
    for weight in (1.0, 0.5):
        fused = (
            fuse(model, tmp_path / "x.safetensors", weight).components["unet"].tensors[f"{module}.weight"].read().reshape(8, -1)
        )
        expected = before.read().reshape(8, -1) + weight * change
        np.testing.assert_allclose(np.linalg.norm(fused, axis=1), lengths, rtol=1e-5)
        cosines = (fused * expected).sum(1) / np.linalg.norm(fused, axis=1) / np.linalg.norm(expected, axis=1)
        np.testing.assert_allclose(cosines, 1, rtol=1e-6)
    unchanged = fuse(model, tmp_path / "x.safetensors", 0.0).components["unet"].tensors[f"{module}.weight"]
    assert np.array_equal(unchanged.read(), before.read())
