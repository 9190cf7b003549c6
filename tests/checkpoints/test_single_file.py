"""What is written into one file says what the model predicts, in the words that other programs and this one look for."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from stages.checkpoints.merging.config import WEIGHTED_SUM
from stages.checkpoints.merging.models import merge_models
from stages.checkpoints.model import read_model, write_model
from stages.checkpoints.reading_config import AS_IT_IS
from stages.checkpoints.single_file import write_single_file
from tests.checkpoints.tiny import SCHEDULER, ldm_weights, random_weights, save_configs, save_diffusers

EPSILON, V = (SCHEDULER | {"prediction_type": kind} for kind in ("epsilon", "v_prediction"))
ZERO_SNR = V | {"rescale_betas_zero_snr": True}
SILENT = {key: value for key, value in SCHEDULER.items() if key != "prediction_type"}


@pytest.fixture
def weights():
    return random_weights(dtype=np.float16)


def exported(tmp_path, weights, scheduler, dtype="float16"):
    model = read_model(save_diffusers(tmp_path / "model", weights, scheduler=scheduler), None)
    write_single_file(model, tmp_path / "out.safetensors", dtype)
    return tmp_path / "out.safetensors"


def metadata(path):
    with safe_open(path, "np") as file:
        return file.metadata()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("scheduler", "markers", "said"),
    [
        (EPSILON, set(), "epsilon"),
        (V, {"v_pred"}, "v"),
        (ZERO_SNR, {"v_pred", "ztsnr"}, "v"),
        (EPSILON | {"rescale_betas_zero_snr": False}, set(), "epsilon"),
        (SILENT, set(), None),
    ],
)
def test_markers_and_metadata(tmp_path, weights, scheduler, markers, said, dtype):
    path = exported(tmp_path, weights, scheduler, dtype)
    written = load_file(path)
    assert {key for key in written if "." not in key} == markers
    assert all(written[key].shape == (0,) for key in markers)
    assert metadata(path).get("modelspec.prediction_type") == said
    assert json.loads(metadata(path)["recipe"]).keys() == {"unet", "vae", "text_encoder"}
    before = path.read_bytes()
    assert exported(tmp_path, weights, scheduler, dtype).read_bytes() == before


@pytest.mark.parametrize(("scheduler", "misleading"), [(EPSILON, V), (V, EPSILON), (ZERO_SNR, EPSILON)])
def test_what_it_says_is_read_again_whatever_the_configs_say(tmp_path, weights, scheduler, misleading):
    path = exported(tmp_path, weights, scheduler)
    configs = save_configs(tmp_path / "configs", scheduler=misleading)
    model = read_model(path, configs)
    assert model.prediction_type == scheduler["prediction_type"]
    assert "out.safetensors say; scheduler_config.json" in model.description()
    write_model(tmp_path / "again", model, "float16")
    expected = misleading | {
        name: scheduler[name] for name in ("prediction_type", "rescale_betas_zero_snr") if name in scheduler
    }
    assert json.loads((tmp_path / "again" / "scheduler" / "scheduler_config.json").read_text()) == expected
    write_single_file(read_model(tmp_path / "again", None), tmp_path / "twice.safetensors", "float16")
    assert load_file(tmp_path / "twice.safetensors").keys() == load_file(path).keys()
    assert metadata(tmp_path / "twice.safetensors")["modelspec.prediction_type"] == metadata(path)["modelspec.prediction_type"]


@pytest.mark.parametrize("prefix", ["", "state_dict."])
def test_another_program_s_markers_are_enough(tmp_path, weights, prefix):
    markers = {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)}
    tensors = {f"{prefix}{key}": value for key, value in (ldm_weights(weights) | markers).items()}
    save_file(tensors, tmp_path / "noob.safetensors")
    model = read_model(tmp_path / "noob.safetensors", save_configs(tmp_path / "configs"))
    assert (model.prediction.type, model.prediction.rescale_betas_zero_snr) == ("v_prediction", True)
    assert (
        "prediction_type v_prediction, zero terminal SNR: as noob.safetensors says with the key v_pred" in model.description()
    )


def test_the_parameters_are_written_where_they_overrule_the_file(tmp_path, weights):
    path = exported(tmp_path, weights, EPSILON)
    model = read_model(path, save_configs(tmp_path / "configs"), replace(AS_IT_IS, prediction_type="v_prediction"))
    write_single_file(model, tmp_path / "v.safetensors", "float16")
    assert "v_pred" in load_file(tmp_path / "v.safetensors")


def test_a_merge_of_models_that_predict_v_says_so(tmp_path):
    for seed in (0, 1):
        save_diffusers(tmp_path / f"theta{seed}", random_weights(seed), scheduler=ZERO_SNR)
    theta0, theta1 = (read_model(tmp_path / f"theta{seed}", None) for seed in (0, 1))
    merged = merge_models(theta0, theta1, WEIGHTED_SUM, 0.5)
    whole = replace(merged, components={**merged.components, "vae": theta0.components["vae"]})
    write_single_file(whole, tmp_path / "out.safetensors", "float16")
    assert {"v_pred", "ztsnr"} <= load_file(tmp_path / "out.safetensors").keys()
    assert metadata(tmp_path / "out.safetensors")["modelspec.prediction_type"] == "v"


@pytest.mark.parametrize("value", ["yes", 1, [True]])
def test_a_schedule_that_is_neither_true_nor_false_is_refused(tmp_path, weights, value):
    folder = save_diffusers(tmp_path / "model", weights, scheduler=V | {"rescale_betas_zero_snr": value})
    with pytest.raises(ValueError, match=r"scheduler_config\.json: rescale_betas_zero_snr: given"):
        read_model(folder, None)
