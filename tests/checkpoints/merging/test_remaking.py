"""A merge is made again from its recipe, byte by byte, or refused by what is missing."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stages.base import stage as base_stage
from stages.checkpoints.__main__ import main
from stages.checkpoints.files.tensors import read_recipe
from stages.checkpoints.merging.remaking import remake
from stages.merge import stage as merge_stage
from stages.vae import stage as vae_stage
from tests.checkpoints.configs import base_config, merge_config, vae_config
from tests.checkpoints.tiny import WEIGHTS, ldm_weights, random_weights, save_configs, save_diffusers

pytestmark = pytest.mark.stage
DTYPES = {"theta0": np.float32, "theta1": np.float16, "theta2": np.float32}
THREE = ("theta0", "theta1", "theta2")


@pytest.fixture
def originals(tmp_path):
    """The single files of three originals, the second in float16, and the configs that belong to them."""
    save_configs(tmp_path / "configs")
    (tmp_path / "originals").mkdir()
    for seed, (name, dtype) in enumerate(DTYPES.items()):
        save_file(ldm_weights(random_weights(seed, dtype=dtype)), tmp_path / "originals" / f"{name}.safetensors")
    return tmp_path / "originals"


def read_originals(tmp_path: Path, originals: Path, names=("theta0", "theta1"), dtype="float32", **settings) -> list[Path]:
    for name in names:
        config = base_config(originals / f"{name}.safetensors", tmp_path / "configs", dtype, **settings)
        base_stage(config, "theta0", tmp_path / name)
    return [tmp_path / name for name in names]


def merge(tmp_path: Path, thetas: list[Path], alpha=0.7, **settings) -> Path:
    vae_stage(vae_config("theta0"), thetas[0], thetas[1], tmp_path / "vae")
    merge_stage(merge_config(**settings), thetas[0], thetas[1], tmp_path / "vae", alpha, tmp_path / "merge", *thetas[2:])
    return tmp_path / "merge"


def assert_remade(merged: Path, out: Path, places: list[Path]) -> None:
    for part in ("unet", "text_encoder"):
        remake(merged / part / WEIGHTS[part], out / f"{part}.safetensors", places)
        assert (out / f"{part}.safetensors").read_bytes() == (merged / part / WEIGHTS[part]).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["text_encoder.safetensors", "unet.safetensors"]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (("theta0", "theta1"), {"method": "weighted_sum"}),
        (("theta0", "theta1"), {"method": "weighted_sum", "blocks": {"M00": 0, "OUT05": 0.25}, "text_encoder": "theta1"}),
        (("theta0", "theta1"), {"method": "slerp", "component_alpha": {"unet": 0.2, "text_encoder": None}}),
        (THREE, {"method": "add_difference"}),
        (THREE, {"method": "ties", "density": 0.3}),
        (THREE, {"method": "dare", "seed": 11}),
    ],
)
def test_the_same_bytes(tmp_path, originals, out, names, settings, dtype):
    merged = merge(tmp_path, read_originals(tmp_path, originals, names), dtype=dtype, **settings)
    assert_remade(merged, out, [originals])


def test_of_originals_that_were_rounded_to_float16(tmp_path, originals, out):
    merged = merge(tmp_path, read_originals(tmp_path, originals, dtype="float16"), dtype="float32")
    assert_remade(merged, out, [originals])


def test_of_averaged_weights(tmp_path, originals, out):
    for seed, name in ((7, "theta0"), (8, "theta1")):
        path = originals / f"{name}.safetensors"
        averages = {
            f"model_ema.{key.removeprefix('model.').replace('.', '')}": value
            for key, value in ldm_weights({"unet": random_weights(seed)["unet"]}).items()
        }
        save_file(load_file(path) | averages, path)
    merged = merge(tmp_path, read_originals(tmp_path, originals, ema=True), dtype="float32")
    assert_remade(merged, out, [originals])


def test_of_a_directory_with_shards(tmp_path, originals, out):
    model = save_diffusers(tmp_path / "models" / "sharded", random_weights(4))
    weights = load_file(model / "unet" / WEIGHTS["unet"])
    (model / "unet" / WEIGHTS["unet"]).unlink()
    shards = {key: f"diffusion_pytorch_model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(weights)}
    for name in set(shards.values()):
        save_file({key: weights[key] for key, shard in shards.items() if shard == name}, model / "unet" / name)
    index = model / "unet" / f"{WEIGHTS['unet']}.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    base_stage(base_config(model), "theta0", tmp_path / "theta0")
    merged = merge(tmp_path, [tmp_path / "theta0", *read_originals(tmp_path, originals, ["theta1"])])
    assert_remade(merged, out, [tmp_path / "models", originals / "theta1.safetensors"])


def test_a_merged_vae(tmp_path, originals, out):
    thetas = read_originals(tmp_path, originals)
    vae_stage(vae_config("merged", alpha=0.25), thetas[0], thetas[1], tmp_path / "vae")
    remake(tmp_path / "vae" / WEIGHTS["vae"], out / "vae.safetensors", [originals])
    assert (out / "vae.safetensors").read_bytes() == (tmp_path / "vae" / WEIGHTS["vae"]).read_bytes()


def test_a_source_of_another_digest_is_refused(tmp_path, originals, out):
    merged = merge(tmp_path, read_originals(tmp_path, originals))
    theta1 = originals / "theta1.safetensors"
    recipe = "theta1, theta1.safetensors with the sha256 [0-9a-f]{64}: name that file"
    save_file(ldm_weights(random_weights(9)), theta1)
    for places in ([originals], [originals / "theta0.safetensors", theta1]):
        with pytest.raises(ValueError, match=rf"not found among --sources: {recipe}"):
            remake(merged / "unet" / WEIGHTS["unet"], out / "x.safetensors", places)
    assert not list(out.iterdir())


def test_weights_that_were_changed_behind_their_recipe_are_refused(tmp_path, originals, out):
    file = merge(tmp_path, read_originals(tmp_path, originals)) / "unet" / WEIGHTS["unet"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="its originals are there, and what they give are other bytes"):
        remake(file, out / "x.safetensors", [originals])
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("density", 2, r"its recipe\.density: given 2.*less than or equal to 1"),
        ("alpha", "0.5", r"its recipe\.alpha: given '0\.5': a number from 0 to 1"),
        ("theta1", {"sha256": 5}, "not found among --sources: theta1, None with the sha256 5"),
        ("theta1", None, "its recipe names no file and no sha256 of theta1"),
        ("method", "other", "holds no recipe of a merge"),
    ],
)
def test_a_recipe_that_was_changed_is_refused(tmp_path, originals, out, setting, value, message):
    file = merge(tmp_path, read_originals(tmp_path, originals)) / "unet" / WEIGHTS["unet"]
    save_file(load_file(file), file, {"recipe": json.dumps({**read_recipe(file), setting: value})})
    with pytest.raises(ValueError, match=message):
        remake(file, out / "x.safetensors", [originals])


def test_on_the_command_line(tmp_path, originals, out, capsys):
    file = merge(tmp_path, read_originals(tmp_path, originals)) / "unet" / WEIGHTS["unet"]
    main([str(file), "--remake", str(out / "x.safetensors"), "--sources", str(originals)])
    assert capsys.readouterr().out.endswith(
        f"theta1: {originals}/theta1.safetensors\n{out}/x.safetensors: the same bytes as {file}\n"
    )
    for arguments, said in (
        (["--remake", str(out / "x.safetensors"), "--sources", str(originals)], "exists: name a file that is not there yet"),
        (["--remake", str(out / "y.safetensors"), "--sources", str(tmp_path / "none")], "none: no such file or directory"),
        (["--remake", str(out / "y.safetensors")], "--remake and --sources go together"),
    ):
        with pytest.raises(SystemExit):
            main([str(file), *arguments])
        assert said in capsys.readouterr().err
