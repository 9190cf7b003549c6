"""What other tools do to a merge, each as a test that this one does not: the name says which keys, and what they get."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stages.checkpoints.keys.key_maps import VAE_PREFIX
from stages.checkpoints.merging.config import WEIGHTED_SUM
from stages.checkpoints.merging.models import merge_models
from stages.checkpoints.model import read_model
from stages.checkpoints.single_file import write_single_file
from tests.checkpoints.tiny import CONFIGS, UNET, ldm_weights, random_weights, save_configs, save_diffusers

CLIP = "cond_stage_model.transformer."
POSITIONS = f"{CLIP}text_model.embeddings.position_ids"
OUT = "model.diffusion_model.out.2.weight"


@pytest.fixture
def configs(tmp_path):
    return save_configs(tmp_path / "configs")


@pytest.fixture
def thetas():
    return [ldm_weights(random_weights(seed, dtype=np.float16)) for seed in (0, 1)]


def merged(tmp_path, configs, thetas, alpha=0.7, dtype="float16"):
    """The two files merged into one, as the pipeline does it: the VAE is theta0's."""
    models = []
    for index, tensors in enumerate(thetas):
        path = tmp_path / f"theta{index}.safetensors"
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
        models.append(read_model(path, configs))
    merge = merge_models(models[0], models[1], WEIGHTED_SUM, alpha)
    components = {**merge.components, "vae": models[0].components["vae"]}
    write_single_file(type(merge)(components, merge.directory, merge.prediction), tmp_path / "out.safetensors", dtype)
    return load_file(tmp_path / "out.safetensors")


def interpolated(thetas, key, alpha=0.7):
    theta0, theta1 = (theta[key].astype(np.float32) for theta in thetas)
    return (np.float32(1 - alpha) * theta0 + np.float32(alpha) * theta1).astype(np.float16)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.9])
@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float16])
def test_position_ids_count_from_0_to_76_where_sd_scripts_averages_and_truncates_them(tmp_path, configs, thetas, alpha, dtype):
    thetas = [{**theta, POSITIONS: np.arange(77, dtype=dtype)[None]} for theta in thetas]
    ids = merged(tmp_path, configs, thetas, alpha)[POSITIONS]
    assert (ids.dtype, ids.tolist()) == (np.int64, [list(range(77))])


def test_text_encoder_without_text_model_is_merged_once_where_sd_scripts_adds_a_model_again(tmp_path, configs, thetas):
    novelai = {key.replace(f"{CLIP}text_model.", CLIP): value for key, value in thetas[0].items()}
    written = merged(tmp_path, configs, [novelai, thetas[1]])
    keys = [key for key in written if key.startswith(CLIP) and key != POSITIONS]
    assert keys
    assert all(written[key].tobytes() == interpolated(thetas, key).tobytes() for key in keys)
    assert all(key.startswith(f"{CLIP}text_model.") for key in keys)


def test_first_stage_model_is_theta0_s_where_a1111_sd_meh_and_sd_scripts_average_the_vaes(tmp_path, configs, thetas):
    written = merged(tmp_path, configs, thetas)
    keys = [key for key in written if key.startswith(VAE_PREFIX)]
    assert keys
    assert all(written[key].tobytes() == thetas[0][key].tobytes() for key in keys)


def test_model_ema_is_left_out_where_a1111_merges_its_keys_too(tmp_path, configs, thetas):
    average = {"model_ema.diffusion_modelout2weight": thetas[0][OUT] * 2, "model_ema.decay": np.array(0.9, np.float16)}
    written = merged(tmp_path, configs, [{**thetas[0], **average}, thetas[1]])
    assert not [key for key in written if key.startswith("model_ema")]
    assert written[OUT].tobytes() == interpolated(thetas, OUT).tobytes()


def test_alpha_is_the_weight_of_the_second_model_where_comfyui_s_ratio_is_that_of_the_first(tmp_path, configs, thetas):
    assert merged(tmp_path, configs, thetas, 1.0)[OUT].tobytes() == thetas[1][OUT].tobytes()
    assert merged(tmp_path, configs, thetas, 0.0)[OUT].tobytes() == thetas[0][OUT].tobytes()


def test_every_value_is_float32_rounded_once_where_sd_meh_computes_in_float16(tmp_path, configs, thetas):
    written = merged(tmp_path, configs, thetas)
    in_half = (np.float16(0.3) * thetas[0][OUT] + np.float16(0.7) * thetas[1][OUT]).astype(np.float16)
    assert written[OUT].tobytes() == interpolated(thetas, OUT).tobytes() != in_half.tobytes()


def test_a_key_that_one_model_lacks_is_refused_where_others_keep_the_other_s_value(tmp_path, configs, thetas):
    lacking = {key: value for key, value in thetas[1].items() if key != OUT}
    with pytest.raises(ValueError, match=rf"theta1.safetensors: 1 missing: {OUT}"):
        merged(tmp_path, configs, [thetas[0], lacking])


def test_attn2_of_another_width_is_refused_where_sd_meh_silently_keeps_one_side(tmp_path):
    sd2 = {"unet": UNET | {"cross_attention_dim": 1024, "use_linear_projection": True}}
    models = [
        read_model(save_diffusers(tmp_path / name, random_weights(0, configs), configs), None)
        for name, configs in {"sd1": {**CONFIGS}, "sd2": {**CONFIGS, **sd2}}.items()
    ]
    with pytest.raises(ValueError, match=r"theta0 is SD1-type .*, theta1 is SD2-type"):
        merge_models(models[0], models[1], WEIGHTED_SUM, 0.7)
