"""Reading models: every form and dialect gives the same tensors; everything else is refused by name."""

import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stages.checkpoints.components import read_vae
from stages.checkpoints.model import read_model, write_model
from tests.checkpoints.tiny import (
    CONFIGS,
    SCHEDULER,
    TEXT_ENCODER,
    UNET,
    WEIGHTS,
    ldm_weights,
    random_weights,
    save_configs,
    save_diffusers,
    tree,
)

CLIP = "cond_stage_model.transformer."


@pytest.fixture
def weights():
    return random_weights()


@pytest.fixture
def configs(tmp_path):
    return save_configs(tmp_path / "configs")


def assert_same(model, weights):
    for name, tensors in weights.items():
        read = model.components[name].tensors
        assert read.keys() == tensors.keys()
        for key, expected in tensors.items():
            assert read[key].read().tobytes() == expected.tobytes(), key
            assert read[key].read().shape == expected.shape


def read_file(tmp_path, configs, tensors):
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, tmp_path / "model.safetensors")
    return read_model(tmp_path / "model.safetensors", configs)


def test_diffusers_directory(tmp_path, weights):
    assert_same(read_model(save_diffusers(tmp_path / "model", weights), None), weights)


def test_ldm_file(tmp_path, configs, weights):
    assert_same(read_file(tmp_path, configs, ldm_weights(weights)), weights)


def test_ldm_file_without_text_model_in_its_text_encoder_keys(tmp_path, configs, weights):
    tensors = {key.replace(f"{CLIP}text_model.", CLIP): value for key, value in ldm_weights(weights).items()}
    assert_same(read_file(tmp_path, configs, tensors), weights)


def test_ldm_file_with_linear_vae_attention(tmp_path, configs, weights):
    tensors = {key: value.squeeze() if ".attn_1." in key else value for key, value in ldm_weights(weights).items()}
    assert_same(read_file(tmp_path, configs, tensors), weights)


def test_ldm_file_with_training_leftovers(tmp_path, configs, weights):
    leftovers = {
        f"{CLIP}text_model.embeddings.position_ids": np.arange(77)[None],
        "model_ema.decay": np.array(0.9999, np.float32),
        "model_ema.diffusion_modelinput_blocks00weight": np.zeros(3, np.float32),
        "first_stage_model.loss.logvar": np.zeros(1, np.float32),
        "sqrt_one_minus_alphas_cumprod": np.zeros(1000, np.float32),
        "posterior_mean_coef1": np.zeros(1000, np.float32),
        "betas": np.zeros(1000, np.float32),
        "global_step": np.array(875000),
    }
    assert_same(read_file(tmp_path, configs, ldm_weights(weights) | leftovers), weights)


def test_diffusers_directory_with_names_of_2022(tmp_path, weights):
    folder = save_diffusers(tmp_path / "model", weights)
    legacy = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    vae = dict(weights["vae"])
    for (new, old), key in itertools.product(legacy.items(), weights["vae"]):
        if new in key:
            vae[key.replace(new, old)] = vae.pop(key)
    assert sum(".proj_attn." in key for key in vae) == 4
    save_file(vae, folder / "vae" / WEIGHTS["vae"])
    text = {key.removeprefix("text_model."): value for key, value in weights["text_encoder"].items()}
    text["embeddings.position_ids"] = np.arange(77, dtype=np.float32)[None]
    save_file(text, folder / "text_encoder" / WEIGHTS["text_encoder"])
    assert_same(read_model(folder, None), weights)


def test_half_precision_variant(tmp_path):
    weights = random_weights(dtype=np.float16)
    folder = save_diffusers(tmp_path / "model", weights)
    file = folder / "unet" / WEIGHTS["unet"]
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert_same(read_model(folder, None), weights)


@pytest.mark.parametrize("spelling", [lambda key: key, lambda key: key.removeprefix("first_stage_model.")])
def test_vae_file(tmp_path, configs, weights, spelling):
    tensors = {spelling(key): value for key, value in ldm_weights({"vae": weights["vae"]}).items()}
    save_file(tensors, tmp_path / "vae.safetensors")
    vae = read_vae(tmp_path / "vae.safetensors", configs / "vae")
    assert {key: value.read().tobytes() for key, value in vae.tensors.items()} == {
        key: value.tobytes() for key, value in weights["vae"].items()
    }


def edited(weights, key, value):
    tensors = ldm_weights(weights)
    tensors.pop(key) if value is None else tensors.update({key: value})
    return tensors


SKIP = "model.diffusion_model.input_blocks.3.0.skip_connection.weight"
TO_K = "model.diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (SKIP, None, f"1 missing: {SKIP}"),
        (SKIP, np.zeros((8, 8, 1, 1), np.float32), rf"1 wrong shape: {SKIP} \(8, 8, 1, 1\) instead of \(8, 4, 1, 1\)"),
        (SKIP, np.zeros((8, 4, 1, 1), np.int8), rf"1 not a float: {SKIP} \(I8\)"),
        ("model.diffusion_model.extra.weight", np.zeros(1, np.float32), "1 unexpected: model.diffusion_model.extra.weight"),
        (TO_K, np.zeros((8, 1024), np.float32), r"SD1-type \(context width 1024\) checkpoint, but .* width 8"),
        ("conditioner.embedders.0.x", np.zeros(1, np.float32), "SDXL"),
        ("cond_stage_model.model.positional_embedding", np.zeros(1, np.float32), r"OpenCLIP's \(SD2\), and .* quick_gelu"),
        (f"{CLIP}final_layer_norm.bias", np.zeros(8, np.float32), "two spellings"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, configs, weights, key, value, message):
    with pytest.raises(ValueError, match=message) as error:
        read_file(tmp_path, configs, edited(weights, key, value))
    assert str(error.value).startswith(str(tmp_path / "model.safetensors"))
    assert len(str(error.value).splitlines()) == 1


def test_a_file_without_vae_is_refused(tmp_path, configs, weights):
    with pytest.raises(ValueError, match="holds no vae"):
        read_file(tmp_path, configs, ldm_weights({name: weights[name] for name in ("unet", "text_encoder")}))


def test_many_keys_are_counted(tmp_path, configs, weights):
    tensors = {key: value for key, value in ldm_weights(weights).items() if ".attn2.to_" not in key}
    with pytest.raises(ValueError, match=r"35 missing: .* and 27 more$"):
        read_file(tmp_path, configs, tensors)


def test_truncated_file(tmp_path, configs, weights):
    save_file(ldm_weights(weights), tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: truncated"):
        read_model(tmp_path / "model.safetensors", configs)


def test_a_single_file_needs_configs(tmp_path, weights):
    save_file(ldm_weights(weights), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no configs"):
        read_model(tmp_path / "model.safetensors", None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("unet/config.json", "{", "not JSON"),
        ("unet/config.json", '{"in_channels": 4}', "block_out_channels is missing"),
        ("unet/config.json", '{"_class_name": "AutoencoderKL"}', "not a UNet2DConditionModel"),
        ("model_index.json", '{"_class_name": "StableDiffusionXLPipeline"}', "StableDiffusionXLPipeline"),
    ],
)
def test_wrong_configs_are_named(tmp_path, weights, name, content, message):
    folder = save_diffusers(tmp_path / "model", weights)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_model(folder, None)


def test_missing_weights_are_named(tmp_path, configs):
    with pytest.raises(ValueError, match=r"unet: no weights; looked for diffusion_pytorch_model.safetensors"):
        read_model(configs, None)


def test_written_and_read_again(tmp_path, weights):
    model = read_model(save_diffusers(tmp_path / "model", weights), None)
    write_model(tmp_path / "a", model, "float32")
    write_model(tmp_path / "b", read_model(tmp_path / "a", None), "float32")
    assert_same(read_model(tmp_path / "a", None), weights)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_written_files_name_no_folder_and_no_safety_checker(tmp_path, weights):
    configs = CONFIGS | {
        "unet": UNET | {"_name_or_path": "/home/somebody"},
        "text_encoder": TEXT_ENCODER | {"torch_dtype": "float32"},
    }
    folder = save_diffusers(tmp_path / "model", weights, configs)
    write_model(tmp_path / "out", read_model(folder, None), "float16")
    assert not [path for path, content in tree(tmp_path / "out").items() if b"/home" in content]
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["safety_checker"] == [None, None]
    text_config = json.loads((tmp_path / "out" / "text_encoder" / "config.json").read_text())
    assert text_config["dtype"] == "float16"
    assert "torch_dtype" not in text_config


def test_values_are_rounded_once_to_the_dtype(tmp_path, weights):
    write_model(tmp_path / "out", read_model(save_diffusers(tmp_path / "model", weights), None), "float16")
    written = load_file(tmp_path / "out" / "unet" / WEIGHTS["unet"])
    assert all(np.array_equal(written[key], value.astype(np.float16)) for key, value in weights["unet"].items())


@pytest.mark.parametrize(("value", "fault"), [(np.nan, "NaN or Inf"), (np.inf, "NaN or Inf"), (1e6, "larger than float16")])
def test_values_that_are_not_finite_are_named(tmp_path, weights, value, fault):
    weights["unet"]["conv_in.weight"][0, 0, 0, 0] = value
    model = read_model(save_diffusers(tmp_path / "model", weights), None)
    with pytest.raises(ValueError, match=rf"model/unet/.*{fault}.*: conv_in.weight"):
        write_model(tmp_path / "out", model, "float16")


def test_prediction_type_is_that_of_the_scheduler(tmp_path, weights):
    folder = save_diffusers(tmp_path / "model", weights, scheduler=SCHEDULER | {"prediction_type": "v_prediction"})
    assert read_model(folder, None).prediction_type == "v_prediction"
