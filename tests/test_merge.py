import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from stages.base import stage as base_stage
from stages.checkpoints.model import read_model
from stages.checkpoints.recipes import recipes_of
from stages.merge import stage
from stages.pipeline.config import ParamsError
from stages.vae import stage as vae_stage
from tests.checkpoints.configs import base_config, merge_config, vae_config
from tests.checkpoints.tiny import (
    CONFIGS,
    SCHEDULER,
    TEXT_ENCODER,
    WEIGHTS,
    ldm_weights,
    random_weights,
    save_configs,
    save_diffusers,
    tree,
)

Folders = tuple[Path, Path, Path]
pytestmark = pytest.mark.stage


@pytest.fixture
def folders(tmp_path):
    save_diffusers(tmp_path / "theta0", random_weights(0, dtype=np.float16))
    save_diffusers(tmp_path / "theta1", random_weights(1))
    vae_stage(vae_config("theta0", dtype="float16"), tmp_path / "theta0", tmp_path / "theta1", tmp_path / "vae")
    return tmp_path / "theta0", tmp_path / "theta1", tmp_path / "vae"


@pytest.mark.parametrize(
    ("blocks", "setting", "allowed"),
    [
        ({"IN00": 2}, "blocks.IN00: given 2", "less than or equal to 1"),
        ({"INX": 0.5}, "blocks.INX: given 'INX'", "match pattern"),
        ([0.1, 2], "blocks.1: given 2", "less than or equal to 1"),
        ("IN00", "blocks: given 'IN00'", "a list is needed"),
    ],
)
def test_a_wrong_weight_of_a_block_is_refused_in_one_line(blocks, setting, allowed):
    with pytest.raises(ParamsError) as error:
        merge_config(blocks=blocks)
    assert str(error.value).startswith(f"merge.{setting}: ")
    assert allowed in str(error.value)
    assert "\n" not in str(error.value)


def other_text_encoder(folder: Path, **settings) -> dict[str, np.ndarray]:
    """Give a model another text encoder and tokenizer; gives its weights."""
    configs = CONFIGS | {"text_encoder": TEXT_ENCODER | settings}
    weights = random_weights(5, configs)
    save_diffusers(folder, weights | {"unet": random_weights(1)["unet"]}, configs)
    (folder / "tokenizer" / "added_tokens.json").write_text('{"mychar": 56}')
    index = json.loads((folder / "model_index.json").read_text()) | {"tokenizer": ["transformers", "CLIPTokenizerFast"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return weights["text_encoder"]


@pytest.mark.parametrize("settings", [{"vocab_size": 80}, {"num_hidden_layers": 3}, {}])
def test_a_text_encoder_that_is_not_taken_may_be_of_any_kind(folders: Folders, tmp_path, settings):
    other_text_encoder(tmp_path / "theta1", **settings)
    stage(merge_config(text_encoder="theta0", dtype="float32"), *folders, 0.7, tmp_path / "out")
    written = load_file(tmp_path / "out" / "text_encoder" / WEIGHTS["text_encoder"])
    assert all(
        np.array_equal(written[key], value) for key, value in random_weights(0, dtype=np.float16)["text_encoder"].items()
    )
    assert not (tmp_path / "out" / "tokenizer" / "added_tokens.json").exists()
    if settings:
        with pytest.raises(ValueError, match="text_encoder: "):
            stage(merge_config(), *folders, 0.7, tmp_path / "merged")


def test_theta1_s_text_encoder_brings_its_config_and_tokenizer(folders: Folders, tmp_path):
    expected = other_text_encoder(tmp_path / "theta1", vocab_size=80)
    stage(merge_config(text_encoder="theta1", dtype="float32"), *folders, 0.7, tmp_path / "out")
    written = load_file(tmp_path / "out" / "text_encoder" / WEIGHTS["text_encoder"])
    assert all(np.array_equal(written[key], value) for key, value in expected.items())
    theta0, theta1, out = tree(tmp_path / "theta0"), tree(tmp_path / "theta1"), tree(tmp_path / "out")
    assert json.loads(out["text_encoder/config.json"])["vocab_size"] == 80
    tokenizer = {path: content for path, content in theta1.items() if path.startswith("tokenizer/")}
    assert {path: content for path, content in out.items() if path.startswith("tokenizer/")} == tokenizer
    assert "tokenizer/added_tokens.json" in tokenizer
    index = json.loads(out["model_index.json"])
    assert index["tokenizer"] == ["transformers", "CLIPTokenizerFast"]
    assert index["unet"] == json.loads(theta0["model_index.json"])["unet"]
    assert out["scheduler/scheduler_config.json"] == theta0["scheduler/scheduler_config.json"]


@pytest.mark.parametrize("lacking", ["theta0", "theta1"])
def test_an_original_without_text_encoder_is_asked_for_none(folders: Folders, tmp_path, lacking):
    (tmp_path / lacking / "text_encoder" / WEIGHTS["text_encoder"]).unlink()
    (tmp_path / lacking / "vae" / WEIGHTS["vae"]).unlink()
    other = {"theta0": "theta1", "theta1": "theta0"}[lacking]
    stage(merge_config(text_encoder=other), *folders, 0.7, tmp_path / "out")
    recipe = recipes_of(tmp_path / "out")["text_encoder"]
    assert (recipe["text_encoder"], lacking in recipe, other in recipe) == (other, False, True)
    for policy in (lacking, "merged"):
        with pytest.raises(ValueError, match=rf"^{lacking} .*/{lacking}\) holds no text_encoder, or none that is finite"):
            stage(merge_config(text_encoder=policy), *folders, 0.7, tmp_path / "none")


def test_a_pruned_file_is_merged_with_another_s_vae(tmp_path):
    """From the file to the merge: neither its missing VAE nor a spoilt text encoder, which is not taken, is in the way."""
    configs = save_configs(tmp_path / "configs")
    pruned, spoilt = ({part: random_weights(seed)[part] for part in ("unet", "text_encoder")} for seed in (0, 1))
    spoilt["text_encoder"]["text_model.final_layer_norm.bias"][0] = np.nan
    for name, weights in (("theta0", pruned), ("theta1", spoilt)):
        save_file(ldm_weights(weights), tmp_path / f"{name}.safetensors")
        base_stage(base_config(tmp_path / f"{name}.safetensors", configs), "theta0", tmp_path / name)
    save_file(ldm_weights({"vae": random_weights(2)["vae"]}), tmp_path / "other.safetensors")
    thetas = tmp_path / "theta0", tmp_path / "theta1"
    vae_stage(vae_config("other", tmp_path / "other.safetensors"), *thetas, tmp_path / "vae")
    stage(merge_config(text_encoder="theta0", dtype="float32"), *thetas, tmp_path / "vae", 0.5, tmp_path / "out")
    whole = read_model(tmp_path / "out", None)
    assert np.array_equal(
        whole.components["vae"].tensors["quant_conv.bias"].read(), random_weights(2)["vae"]["quant_conv.bias"]
    )
    with pytest.raises(ValueError, match=r"theta1\) holds no text_encoder"):
        stage(merge_config(), *thetas, tmp_path / "vae", 0.5, tmp_path / "none")


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_merge_is_the_float32_formula_rounded_once(folders: Folders, tmp_path, alpha, dtype):
    stage(merge_config(dtype=dtype), *folders, alpha, tmp_path / "out")
    thetas = random_weights(0, dtype=np.float16), random_weights(1)
    for part in ("unet", "text_encoder"):
        written = load_file(tmp_path / "out" / part / WEIGHTS[part])
        assert written.keys() == thetas[0][part].keys()
        for key, value in written.items():
            theta0, theta1 = (theta[part][key].astype(np.float32) for theta in thetas)
            expected = np.float32(1 - alpha) * theta0 + np.float32(alpha) * theta1
            assert value.tobytes() == expected.astype(dtype).tobytes(), key


def test_the_vae_is_copied_byte_by_byte(folders: Folders, tmp_path):
    stage(merge_config(), *folders, 0.7, tmp_path / "out")
    assert tree(tmp_path / "out" / "vae") == tree(tmp_path / "vae")


def test_two_runs_give_the_same_bytes(folders: Folders, tmp_path):
    for name in ("a", "b"):
        stage(merge_config(), *folders, 0.7, tmp_path / name)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_configs_scheduler_and_tokenizer_are_those_of_theta0(folders: Folders, tmp_path):
    stage(merge_config(), *folders, 0.7, tmp_path / "out")
    theta0, out = tree(tmp_path / "theta0"), tree(tmp_path / "out")
    assert all(out[path] == content for path, content in theta0.items() if path.startswith(("scheduler", "tokenizer")))
    assert json.loads(out["unet/config.json"]) == json.loads(theta0["unet/config.json"])


def test_passthrough_is_theta0_in_the_dtype(folders: Folders, tmp_path):
    (tmp_path / "empty").mkdir()
    stage(merge_config(method="passthrough"), folders[0], tmp_path / "empty", folders[2], 0.7, tmp_path / "out")
    for part in ("unet", "text_encoder"):
        assert load_file(tmp_path / "out" / part / WEIGHTS[part]).keys() == load_file(folders[0] / part / WEIGHTS[part]).keys()
        for key, value in load_file(folders[0] / part / WEIGHTS[part]).items():
            assert np.array_equal(load_file(tmp_path / "out" / part / WEIGHTS[part])[key], value)


def test_the_recipe_is_in_the_metadata(folders: Folders, tmp_path):
    stage(merge_config(text_encoder="theta0"), *folders, 0.7, tmp_path / "out")
    with safe_open(tmp_path / "out" / "unet" / WEIGHTS["unet"], "np") as file:
        recipe = json.loads(file.metadata()["recipe"])
    assert {"formula", "direction", "method_source", "numpy", "blocks", "theta0", "theta1"} < recipe.keys()
    assert (recipe["method"], recipe["alpha"], recipe["text_encoder"]) == ("weighted_sum", 0.7, "theta0")


@pytest.mark.parametrize(
    ("method", "alpha", "message"),
    [
        ("weighted_sum", 1.5, r"--alpha: given 1.5"),
        ("weighted_sum", float("nan"), r"--alpha: given nan"),
        ("passthrough", 0.7, "takes theta0 as it is"),
    ],
)
def test_wrong_settings_are_refused(folders: Folders, tmp_path, method, alpha, message):
    with pytest.raises(ValueError, match=message):
        stage(merge_config(method=method), *folders, alpha, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_theta_is_refused(folders: Folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="merges two models"):
        stage(merge_config(), folders[0], tmp_path / "empty", folders[2], 0.7, tmp_path / "out")
    with pytest.raises(ValueError, match="empty is empty"):
        stage(merge_config(), tmp_path / "empty", folders[1], folders[2], 0.7, tmp_path / "out")


def test_a_third_model_is_used_where_the_method_needs_one(folders: Folders, tmp_path):
    save_diffusers(tmp_path / "theta2", random_weights(2))
    with pytest.raises(ValueError, match="add_difference merges three models, and there is no theta2"):
        stage(merge_config(method="add_difference"), *folders, 0.7, tmp_path / "out", tmp_path / "LICENSE")
    stage(merge_config(method="add_difference", dtype="float32"), *folders, 0.7, tmp_path / "out", tmp_path / "theta2")
    key = "conv_in.weight"
    thetas = [random_weights(0, dtype=np.float16), random_weights(1), random_weights(2)]
    theta0, theta1, theta2 = (theta["unet"][key].astype(np.float32) for theta in thetas)
    written = load_file(tmp_path / "out" / "unet" / WEIGHTS["unet"])[key]
    assert written.tobytes() == (theta0 + np.float32(0.7) * (theta1 - theta2)).tobytes()


def test_a_disk_without_room_is_said_before_the_merge(folders: Folders, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="are free: make room first"):
        stage(merge_config(), *folders, 0.7, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theta0", "theta1", "vae"]


def test_the_schedule_of_a_merge_can_be_made_to_end_in_noise_alone(tmp_path):
    """For models that predict v; the weights are those of the same merge without it."""
    for name, seed in (("theta0", 0), ("theta1", 1)):
        save_diffusers(tmp_path / name, random_weights(seed), scheduler=SCHEDULER | {"prediction_type": "v_prediction"})
    theta0, theta1 = tmp_path / "theta0", tmp_path / "theta1"
    for name, rescaled in (("plain", False), ("rescaled", True)):
        stage(merge_config(rescale_betas_zero_snr=rescaled), theta0, theta1, theta0 / "vae", 0.5, tmp_path / name)
    configs = [json.loads((tmp_path / name / "scheduler/scheduler_config.json").read_text()) for name in ("plain", "rescaled")]
    assert configs[1] == configs[0] | {"rescale_betas_zero_snr": True}
    assert read_model(tmp_path / "rescaled", None, partial=True).prediction.markers() == ["v_pred", "ztsnr"]
    weights = [(tmp_path / name / "unet" / Path(WEIGHTS["unet"]).name).read_bytes() for name in ("plain", "rescaled")]
    assert weights[0] == weights[1]


def test_a_schedule_that_ends_in_noise_alone_is_not_for_models_that_predict_noise(folders: Folders, tmp_path):
    with pytest.raises(ValueError, match="rescale_betas_zero_snr: given True: the models predict epsilon"):
        stage(merge_config(rescale_betas_zero_snr=True), *folders, 0.5, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
