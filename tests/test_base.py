import json
import re

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from stages.base import BaseConfig, stage
from stages.pipeline.config import validate
from stages.pipeline.outputs import holds_something
from tests.checkpoints.configs import base_config, conf_defaults
from tests.checkpoints.tiny import SCHEDULER, WEIGHTS, ldm_weights, random_weights, save_configs, save_diffusers, tree


@pytest.fixture
def single_file(tmp_path):
    save_file(ldm_weights(random_weights()), tmp_path / "anime.safetensors")
    return tmp_path / "anime.safetensors"


@pytest.fixture
def configs(tmp_path):
    return save_configs(tmp_path / "configs")


@pytest.mark.stage
def test_single_file_and_ckpt_and_directory_give_the_same_weights(tmp_path, single_file, configs):
    import torch

    torch.save({"state_dict": {k: torch.from_numpy(v) for k, v in load_file(single_file).items()}}, tmp_path / "a.ckpt")
    save_diffusers(tmp_path / "model", random_weights())
    for name, config in (("anime.safetensors", configs), ("a.ckpt", configs), ("model", None)):
        stage(base_config(tmp_path / name, config), "theta0", tmp_path / "out" / name)
    written = [
        {part: load_file(tmp_path / "out" / name / part / WEIGHTS[part]) for part in WEIGHTS}
        for name in ("anime.safetensors", "a.ckpt", "model")
    ]
    for part, tensors in random_weights().items():
        for model in written:
            assert model[part].keys() == tensors.keys()
            assert all(np.array_equal(model[part][key], value) for key, value in tensors.items())


@pytest.mark.stage
def test_layout(tmp_path, single_file, configs):
    stage(base_config(single_file, configs), "theta0", tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        *(f"{part}/config.json" for part in WEIGHTS),
        *(f"{part}/{name}" for part, name in WEIGHTS.items()),
    }
    assert json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text()) == SCHEDULER


@pytest.mark.stage
def test_two_runs_give_the_same_bytes_and_no_path(tmp_path, single_file, configs):
    for name in ("a", "b"):
        stage(base_config(single_file, configs, "float16"), "theta0", tmp_path / name)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert not [path for path, content in tree(tmp_path / "a").items() if str(tmp_path).encode() in content]


@pytest.mark.stage
def test_the_recipe_names_source_and_digest(tmp_path, single_file, configs):
    stage(base_config(single_file, configs), "theta0", tmp_path / "out")
    with safe_open(tmp_path / "out" / "vae" / WEIGHTS["vae"], "np") as file:
        recipe = json.loads(file.metadata()["recipe"])
    assert recipe["source"] == "anime.safetensors"
    assert re.fullmatch(r"[0-9a-f]{64}", recipe["sha256"])


@pytest.mark.stage
def test_no_theta1_is_a_directory_with_nothing_but_a_note(tmp_path, single_file, configs):
    stage(base_config(single_file, configs), "theta1", tmp_path / "out")
    (note,) = (tmp_path / "out").iterdir()
    assert "base.theta1 is null" in note.read_text()
    assert not holds_something(tmp_path / "out")


@pytest.mark.stage
def test_a_wrong_checkpoint_names_its_setting_and_leaves_nothing(tmp_path, single_file, configs):
    save_file({"conv_in.weight": np.zeros(1)}, single_file)
    with pytest.raises(ValueError, match=r"^base\.theta0: .*anime\.safetensors: holds no unet"):
        stage(base_config(single_file, configs), "theta0", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anime.safetensors", "configs"]


def spoiled(part, value):
    weights = random_weights()
    key = next(iter(weights[part]))
    weights[part][key].flat[0] = value
    return weights


@pytest.mark.stage
@pytest.mark.parametrize("part", ["vae", "text_encoder"])
@pytest.mark.parametrize("form", ["single", "directory"])
def test_what_a_checkpoint_lacks_is_left_out_and_said(tmp_path, configs, capsys, part, form):
    weights = {name: tensors for name, tensors in random_weights().items() if name != part}
    save_file(ldm_weights(weights), tmp_path / "single.safetensors")
    save_diffusers(tmp_path / "directory", weights)
    source = tmp_path / ("single.safetensors" if form == "single" else form)
    stage(base_config(source, configs if form == "single" else None), "theta0", tmp_path / "out")
    assert f"base.theta0: without its {part}: the checkpoint holds none; a stage that takes it" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out" / part).iterdir()] == ["config.json"]
    assert set(tree(tmp_path / "out")) >= {f"{name}/{WEIGHTS[name]}" for name in weights}


@pytest.mark.stage
@pytest.mark.parametrize("part", ["vae", "text_encoder"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_left_out_and_said(tmp_path, configs, capsys, part, value):
    save_file(ldm_weights(spoiled(part, value)), tmp_path / "x.safetensors")
    stage(base_config(tmp_path / "x.safetensors", configs), "theta0", tmp_path / "out")
    said = rf"base\.theta0: without its {part}: {tmp_path}/x\.safetensors: not a finite number \(NaN or Inf\): \w+"
    assert re.search(said, capsys.readouterr().out)
    assert [path.name for path in (tmp_path / "out" / part).iterdir()] == ["config.json"]


@pytest.mark.stage
@pytest.mark.parametrize(("part", "value", "dtype"), [("unet", np.nan, "float32"), ("vae", 1e6, "float16")])
def test_a_unet_that_is_not_finite_and_what_the_dtype_cannot_hold_is_refused(tmp_path, configs, part, value, dtype):
    save_file(ldm_weights(spoiled(part, value)), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="NaN or Inf" if part == "unet" else "larger than float16 holds"):
        stage(base_config(tmp_path / "x.safetensors", configs, dtype), "theta0", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.stage
def test_a_file_without_unet_is_refused(tmp_path, configs):
    save_file(ldm_weights({"vae": random_weights()["vae"]}), tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=r"^base\.theta0: .*vae\.safetensors: holds no unet"):
        stage(base_config(tmp_path / "vae.safetensors", configs), "theta0", tmp_path / "out")


def test_wrong_name(tmp_path, single_file):
    with pytest.raises(ValueError, match="theta0, theta1 or theta2"):
        stage(base_config(single_file), "theta3", tmp_path / "out")


def test_conf_holds_every_setting(tmp_path):
    values = conf_defaults("base")
    values["theta1"]["config"] = values["theta0"]["config"]  # what it refers to
    for name in ("theta0", "theta1"):
        for place in ("source", "config"):
            values[name][place] |= {"path": str(tmp_path), "repo": None}
    assert validate("base", BaseConfig, values).dtype == "float32"
