"""Single files of SD2: OpenCLIP's names, three projections in one tensor, one layer more than is used."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.checkpoints.files.tensors import open_safetensors
from stages.checkpoints.keys.open_clip import from_open_clip
from stages.checkpoints.model import read_model
from tests.checkpoints.tiny import CONFIGS, TEXT_ENCODER, UNET, WIDTH, ldm_weights, random_weights, save_configs

SD2 = CONFIGS | {"unet": UNET | {"use_linear_projection": True}, "text_encoder": TEXT_ENCODER | {"hidden_act": "gelu"}}
PREFIX = "cond_stage_model.model."
RENAMED = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def open_clip_weights(weights):
    """The single file of Stability AI, by its published key names."""
    tensors = ldm_weights({part: weights[part] for part in ("unet", "vae")}, SD2)
    text = {key.removeprefix("text_model."): value for key, value in weights["text_encoder"].items()}
    for key in list(text):
        if ".q_proj." in key:
            fused = [text.pop(key.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
            text[key.replace("self_attn.q_proj.", "attn.in_proj_")] = np.concatenate(fused)
    for key, value in text.items():
        for name, ldm_name in RENAMED.items():
            key = key.replace(name, ldm_name)
        tensors[PREFIX + key] = value
    last = {key: value for key, value in tensors.items() if f"{PREFIX}transformer.resblocks.1." in key}
    tensors |= {key.replace("resblocks.1.", "resblocks.2."): value + 1 for key, value in last.items()}
    unused = {"text_projection": np.ones((WIDTH, WIDTH), np.float32), "logit_scale": np.float32(4.6)}
    return tensors | {PREFIX + key: np.asarray(value) for key, value in unused.items()}


@pytest.fixture
def file(tmp_path):
    save_file(open_clip_weights(random_weights(configs=SD2)), tmp_path / "sd2.safetensors")
    return tmp_path / "sd2.safetensors"


def test_a_whole_file(tmp_path, file):
    model = read_model(file, save_configs(tmp_path / "configs", SD2))
    assert model.description().startswith(f"SD2-type (context width {WIDTH}); prediction_type epsilon:")
    for name, tensors in random_weights(configs=SD2).items():
        assert model.components[name].tensors.keys() == tensors.keys()
        assert all(np.array_equal(model.components[name].tensors[key].read(), value) for key, value in tensors.items())


def test_published_names(file):
    assert {f"{PREFIX}transformer.resblocks.0.attn.in_proj_weight", f"{PREFIX}transformer.resblocks.0.mlp.c_fc.bias"} <= set(
        open_safetensors(file)
    )


def test_thirds_are_read_from_the_file_alone(file):
    tensors = from_open_clip(open_safetensors(file), 2)
    thirds = [tensor for key, tensor in tensors.items() if "q_proj.weight" in key]
    assert [tensor.stored and tensor.stored.size for tensor in thirds] == [4 * WIDTH * WIDTH] * 2


def test_a_fused_tensor_of_a_wrong_shape_is_named(tmp_path, file):
    key = f"{PREFIX}transformer.resblocks.0.attn.in_proj_bias"
    save_file(open_clip_weights(random_weights(configs=SD2)) | {key: np.zeros(7, np.float32)}, file)
    with pytest.raises(ValueError, match=rf"sd2.safetensors: wrong shape: {key} \(7,\)"):
        read_model(file, save_configs(tmp_path / "configs", SD2))


def test_a_missing_layer_is_named(tmp_path, file):
    tensors = open_clip_weights(random_weights(configs=SD2))
    del tensors[f"{PREFIX}transformer.resblocks.1.ln_2.bias"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"1 missing: .*encoder\.layers\.1\.layer_norm2\.bias"):
        read_model(file, save_configs(tmp_path / "configs", SD2))


def test_configs_of_sd1_do_not_belong_to_it(tmp_path, file):
    with pytest.raises(ValueError, match=r"an SD2-type .* checkpoint, but .* describes SD1-type"):
        read_model(file, save_configs(tmp_path / "configs"))


@pytest.mark.stage
def test_diffusers_converts_it_the_same_way(file):
    import torch
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(**{**SD2["text_encoder"], "num_hidden_layers": 3})
    tensors = {key: torch.from_numpy(value) for key, value in open_clip_weights(random_weights(configs=SD2)).items()}
    theirs = convert_open_clip_checkpoint(CLIPTextModel(config), tensors)
    ours = {key: tensor for key, tensor in from_open_clip(open_safetensors(file), 3).items() if "transformer.text_model" in key}
    assert {f"cond_stage_model.transformer.{key}" for key in theirs if key != "text_projection.weight"} == ours.keys()
    for key, tensor in ours.items():
        assert np.array_equal(tensor.read(), theirs[key.removeprefix("cond_stage_model.transformer.")].numpy()), key
