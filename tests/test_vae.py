from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stages.checkpoints.recipes import recipes_of
from stages.pipeline.config import ParamsError, validate
from stages.vae import VaeConfig, stage
from tests.checkpoints.configs import vae_config
from tests.checkpoints.tiny import VAE, WEIGHTS, ldm_weights, random_weights, save_diffusers


@pytest.fixture
def thetas(tmp_path):
    return tuple(save_diffusers(tmp_path / f"theta{seed}", random_weights(seed)) for seed in (0, 1))


def assert_written(out, seed):
    assert sorted(path.name for path in out.iterdir()) == ["config.json", WEIGHTS["vae"]]
    written = load_file(out / WEIGHTS["vae"])
    assert all(np.array_equal(written[key], value) for key, value in random_weights(seed)["vae"].items())


@pytest.mark.stage
@pytest.mark.parametrize(("source", "seed"), [("theta0", 0), ("theta1", 1)])
def test_of_an_original(tmp_path, thetas: tuple[Path, Path], source, seed):
    stage(vae_config(source), *thetas, tmp_path / "out")
    assert_written(tmp_path / "out", seed)


@pytest.mark.stage
@pytest.mark.parametrize("form", ["model", "model/vae", "vae.safetensors"])
def test_of_another_source(tmp_path, thetas: tuple[Path, Path], form):
    save_diffusers(tmp_path / "model", random_weights(2))
    save_file(ldm_weights({"vae": random_weights(2)["vae"]}), tmp_path / "vae.safetensors")
    stage(vae_config("other", tmp_path / form), *thetas, tmp_path / "out")
    assert_written(tmp_path / "out", 2)


@pytest.mark.stage
def test_of_a_theta1_that_is_not_there(tmp_path, thetas: tuple[Path, Path]):
    (tmp_path / "empty").mkdir()
    for source, alpha in (("theta1", None), ("merged", 0.5)):
        with pytest.raises(ValueError, match=rf"vae\.source: {source}"):
            stage(vae_config(source, alpha=alpha), thetas[0], tmp_path / "empty", tmp_path / "out")


@pytest.mark.stage
@pytest.mark.parametrize("lacking", [0, 1])
def test_an_original_without_vae_is_asked_for_none(tmp_path, thetas: tuple[Path, Path], lacking):
    (thetas[lacking] / "vae" / WEIGHTS["vae"]).unlink()
    save_file(ldm_weights({"vae": random_weights(2)["vae"]}), tmp_path / "vae.safetensors")
    stage(vae_config("other", tmp_path / "vae.safetensors"), *thetas, tmp_path / "out")
    assert_written(tmp_path / "out", 2)
    stage(vae_config(f"theta{1 - lacking}"), *thetas, tmp_path / "own")
    assert_written(tmp_path / "own", 1 - lacking)
    for source, alpha in ((f"theta{lacking}", None), ("merged", 0.5)):
        with pytest.raises(
            ValueError, match=rf"^vae\.source: {source}, and theta{lacking} holds no VAE.* base\.theta{lacking}\.fill"
        ):
            stage(vae_config(source, alpha=alpha), *thetas, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.stage
def test_merged(tmp_path, thetas: tuple[Path, Path]):
    stage(vae_config("merged", alpha=0.25), *thetas, tmp_path / "out")
    written = load_file(tmp_path / "out" / WEIGHTS["vae"])
    vaes = [random_weights(seed)["vae"] for seed in (0, 1)]
    assert written.keys() == vaes[0].keys()
    for key, value in written.items():
        assert np.array_equal(value, np.float32(0.75) * vaes[0][key] + np.float32(0.25) * vaes[1][key]), key
    recipe = recipes_of(tmp_path / "out" / WEIGHTS["vae"])["weights"]
    assert (recipe["method"], recipe["alpha"]) == ("weighted_sum", 0.25)
    assert {"theta0", "theta1", "direction"} <= recipe.keys()


@pytest.mark.stage
def test_of_other_latents(tmp_path, thetas: tuple[Path, Path]):
    config = VAE | {"latent_channels": 16}
    save_diffusers(tmp_path / "model", random_weights(2, {"vae": config}), {"vae": config})
    with pytest.raises(ValueError, match="16 latent channels, and the UNet takes 4"):
        stage(vae_config("other", tmp_path / "model"), *thetas, tmp_path / "out")


@pytest.mark.parametrize(("source", "alpha"), [("merged", None), ("theta0", 0.5)])
def test_alpha_goes_with_its_source(source, alpha):
    with pytest.raises(ParamsError, match=r"^vae\.alpha: "):
        validate("vae", VaeConfig, {"source": source, "alpha": alpha, "other": None, "dtype": "float32"})


@pytest.mark.parametrize(("source", "path"), [("other", None), ("theta0", ".")])
def test_other_goes_with_its_source(source, path):
    other = path and {"path": path, "repo": None, "revision": None, "file": None, "sha256": None}
    with pytest.raises(ParamsError, match=r"^vae\.other: "):
        validate("vae", VaeConfig, {"source": source, "alpha": None, "other": other, "dtype": "float32"})
