"""Drawing with LoRA files of other programs: each layer of the model changes by what the file adds to it."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from stages.checkpoints.adapters.lora_files import kohya_name
from stages.checkpoints.file_names import LORA_METADATA_KEY
from stages.drawing.loaded_models import load_lora, load_models
from stages.drawing.lora_loading import attach
from tests.checkpoints.adapters.foreign_loras import (
    CONVOLUTION,
    FILES,
    INCOMPLETE,
    KOHYA,
    QUERY,
    kohya,
    lora,
    pair,
    save,
    save_incomplete,
)
from tests.checkpoints.tiny import random_weights, save_diffusers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_diffusers(tmp_path_factory.mktemp("model"), random_weights())


def settings_of(values):
    return {LORA_METADATA_KEY: json.dumps(values)}


def parts_of(models):
    return {"unet": models.unet, "text_encoder": models.text_encoder}


def weights_by_name(models):
    """The weights, with the adapters that are still there put into them, by kohya's names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for component, part in parts_of(models).items():
        for module in part.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
        for key, parameter in part.named_parameters():
            if key.endswith(".weight") and parameter.ndim > 1 and ".lora_" not in key:
                found[kohya_name(component, key.removesuffix(".weight").removesuffix(".base_layer"))] = (
                    parameter.detach().numpy()
                )
    return found


def changes(folder, load):
    models = load_models(folder, CPU)
    before = {name: weight.copy() for name, weight in weights_by_name(models).items()}
    load(models)
    after = weights_by_name(models)
    return {name: after[name] - weight for name, weight in before.items() if not np.array_equal(after[name], weight)}


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("name", FILES)
def test_each_layer_changes_by_what_the_file_adds(tmp_path, folder, name, scale):
    file = save(tmp_path, name)
    found = changes(folder, lambda models: load_lora(models, file, scale))
    truth = {KOHYA[module]: change for module, change in FILES[name][1].items()}
    assert found.keys() == truth.keys()
    for layer, change in truth.items():
        np.testing.assert_allclose(found[layer], scale * change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_scale_zero_is_the_model_itself(tmp_path, folder, name):
    file = save(tmp_path, name)
    assert not changes(folder, lambda models: load_lora(models, file, 0.0))


@pytest.mark.parametrize("name", ["an alpha for each layer", "LoKr"])
def test_in_half_precision_the_adapters_stay_beside_the_weights(tmp_path, folder, name):
    models = load_models(folder, CPU, torch.bfloat16)
    latents, embeds = torch.ones(1, 4, 8, 8).bfloat16(), torch.ones(1, 7, 8).bfloat16()
    with torch.no_grad():
        plain = models.unet(latents, 3, embeds, return_dict=False)[0]
        load_lora(models, save(tmp_path, name))
        drawn = models.unet(latents, 3, embeds, return_dict=False)[0]
    assert drawn.isfinite().all()
    assert (drawn - plain).abs().max() > 0.01
    assert any("lora_A" in key or "lokr" in key for key in models.unet.state_dict())


def test_the_adapters_of_a_lora_have_its_own_strengths(tmp_path, folder):
    models = load_models(folder, CPU)
    file = save(tmp_path, "an alpha for each layer")
    assert attach(parts_of(models), file) == ["unet", "text_encoder"]
    layers = {
        kohya_name(component, name): module
        for component, part in parts_of(models).items()
        for name, module in part.named_modules()
        if hasattr(module, "lora_A")
    }
    tensors = load_file(file)
    assert layers.keys() == set(KOHYA.values())
    for name, layer in layers.items():
        rank, alpha = len(tensors[f"{name}.lora_down.weight"]), float(tensors[f"{name}.alpha"])
        assert (layer.r["lora"], layer.lora_alpha["lora"], layer.scaling["lora"]) == (rank, alpha, alpha / rank)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (kohya({QUERY: lora(QUERY, 2, 1.0) | {"dora_scale": np.ones((8, 1), np.float32)}}), "dora_scale: DoRA in kohya's keys"),
        ({"lora_unet_x.lora_down.weight": 1, "lora_unet_x.lora_up.weight": 1}, "do not fit each other"),
        (kohya({QUERY: lora(QUERY, 2, 1.0)}, {QUERY: "lora_unet_down_blocks_9_x"}), "does not belong to this model"),
        (kohya({CONVOLUTION: lora(CONVOLUTION, 2, 1.0)}, KOHYA | {CONVOLUTION: KOHYA[QUERY]}), "does not fit this model"),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_what_cannot_be_drawn_is_refused_with_the_files_name(tmp_path, folder, tensors, message, scale):
    save_file({key: np.array(value, np.float32) for key, value in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"x\.safetensors: .*{message}"):
        load_lora(load_models(folder, CPU), tmp_path / "x.safetensors", scale)


@pytest.mark.parametrize("own", [(), (QUERY,), (QUERY, CONVOLUTION)])
def test_a_layer_with_its_own_alpha_is_not_divided_by_the_root(tmp_path, folder, own):
    """PEFT's use_rslora is for the alpha beside it; `.alpha` tensors are divided by the rank."""
    tensors, expected = {}, {}
    for module in (QUERY, CONVOLUTION):
        parts, name = pair(module, 4), f"unet.{module}"
        tensors |= {f"{name}.lora_A.weight": parts["down"], f"{name}.lora_B.weight": parts["up"]}
        if module in own:
            tensors[f"{name}.alpha"] = np.array(3.0, np.float32)
        product = np.tensordot(parts["up"].reshape(8, 4), parts["down"], 1)
        expected[KOHYA[module]] = (3 / 4 if module in own else 6 / 2) * product
    save_file(tensors, tmp_path / "x.safetensors", settings_of({"unet.lora_alpha": 6, "unet.use_rslora": True}))
    found = changes(folder, lambda models: load_lora(models, tmp_path / "x.safetensors"))
    assert found.keys() == expected.keys()
    for layer, change in expected.items():
        np.testing.assert_allclose(found[layer], change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "leaf", ["exclude_modules", "modules_to_save", "layers_pattern", "layers_to_transform", "target_modules"]
)
def test_settings_that_name_layers_change_nothing(tmp_path, folder, leaf):
    """Which layers there are is what the tensors say; PEFT would look for others, or try a pattern for hours."""
    value = [0] if leaf == "layers_to_transform" else ["(([a-z_0-9.])+)+!"]
    tensors = {f"unet.{QUERY}.lokr_w{number}": np.full((2, 2) if number == 1 else (4, 4), 0.5, np.float32) for number in (1, 2)}
    settings = {"unet.peft_type": "LOKR", "unet.alpha": 4, "unet.r": 8, f"unet.{leaf}": value}
    for given in (settings, settings | {f"unet.{leaf}": value[0]}):
        save_file(tensors, tmp_path / "x.safetensors", settings_of(given))
        found = changes(folder, lambda models: load_lora(models, tmp_path / "x.safetensors"))
        assert found.keys() == {KOHYA[QUERY]}
        np.testing.assert_allclose(found[KOHYA[QUERY]], 0.5 * 0.25, rtol=1e-5)


@pytest.mark.parametrize("setting", INCOMPLETE)
def test_what_is_not_all_that_was_trained_is_not_drawn(tmp_path, folder, setting):
    save_incomplete(tmp_path, setting)
    for scale in (1.0, 0.0):
        with pytest.raises(ValueError, match=rf"pytorch_lora_weights\.safetensors: .*{setting}"):
            load_lora(load_models(folder, CPU), tmp_path, scale)


@pytest.mark.parametrize("name", ["an alpha for each layer", "LoHa"])
def test_factors_that_are_no_numbers_are_refused(tmp_path, folder, name):
    tensors = {key: value.copy() for key, value in FILES[name][0].items()}
    next(value for key, value in tensors.items() if "attn1_to_q." in key and value.ndim)[0, 0] = np.nan
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: .*attn1\.to_q\..* holds NaN or Inf"):
        load_lora(load_models(folder, CPU), tmp_path / "x.safetensors")


def test_dora_beside_other_adapters_is_refused(tmp_path, folder):
    tensors = kohya({QUERY: lora(QUERY, 2, 1.0), CONVOLUTION: lora(CONVOLUTION, 2, 1.0)})
    tensors[f"{KOHYA[QUERY]}.lora_magnitude_vector"] = np.ones(8, np.float32)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: .*DoRA beside other adapters"):
        load_lora(load_models(folder, CPU), tmp_path / "x.safetensors")
