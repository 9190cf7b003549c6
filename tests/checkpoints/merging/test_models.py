from dataclasses import replace

import numpy as np
import pytest

from stages.checkpoints.merging.config import WEIGHTED_SUM, ComponentAlpha
from stages.checkpoints.merging.models import merge_models
from stages.checkpoints.model import read_model
from tests.checkpoints.tiny import CONFIGS, SCHEDULER, TEXT_ENCODER, UNET, random_weights, save_diffusers

ALPHA = 0.7


@pytest.fixture
def models(tmp_path):
    return [read_model(save_diffusers(tmp_path / f"theta{seed}", random_weights(seed)), None) for seed in (0, 1)]


def read(tmp_path, name, configs=CONFIGS, scheduler=SCHEDULER):
    return read_model(save_diffusers(tmp_path / name, random_weights(1, configs), configs, scheduler), None)


@pytest.mark.parametrize(("alpha", "winner"), [(0.0, 0), (1.0, 1)])
def test_alpha_is_the_weight_of_theta1(models, alpha, winner):
    merged = merge_models(models[0], models[1], WEIGHTED_SUM, alpha)
    for name in ("unet", "text_encoder"):
        for key, tensor in merged.components[name].tensors.items():
            assert np.array_equal(tensor.read(), models[winner].components[name].tensors[key].read())


def test_half_precision_is_merged_in_float32(tmp_path):
    weights = [random_weights(seed, dtype=np.float16) for seed in (0, 1)]
    models = [read_model(save_diffusers(tmp_path / f"{seed}", weights[seed]), None) for seed in (0, 1)]
    for key, tensor in merge_models(models[0], models[1], WEIGHTED_SUM, ALPHA).components["unet"].tensors.items():
        theta0, theta1 = (weight["unet"][key].astype(np.float64) for weight in weights)
        merged = tensor.read()
        assert merged.dtype == np.float32
        assert np.abs(merged - (0.3 * theta0 + 0.7 * theta1)).max() < 1e-6, key


@pytest.mark.parametrize(("policy", "index"), [("theta0", 0), ("theta1", 1)])
def test_text_encoder_taken_whole(models, policy, index):
    merged = merge_models(models[0], models[1], replace(WEIGHTED_SUM, text_encoder=policy), ALPHA)
    for key, tensor in merged.components["text_encoder"].tensors.items():
        assert np.array_equal(tensor.read(), models[index].components["text_encoder"].tensors[key].read())
    assert not np.array_equal(
        merged.components["unet"].tensors["conv_in.weight"].read(),
        models[index].components["unet"].tensors["conv_in.weight"].read(),
    )


def test_a_text_encoder_taken_whole_from_theta1_keeps_its_config_and_its_shards(models):
    theta1 = models[1].components["text_encoder"]
    sharded = replace(theta1, config={**theta1.config, "layer_norm_eps": 1e-4}, shards=(theta1.file,))
    other = replace(models[1], components={**models[1].components, "text_encoder": sharded})
    taken = merge_models(models[0], other, replace(WEIGHTED_SUM, text_encoder="theta1"), ALPHA).components["text_encoder"]
    assert taken.config["layer_norm_eps"] == 1e-4
    assert taken.digest() == sharded.digest() != theta1.digest()


def test_the_vae_is_not_merged(models):
    assert merge_models(models[0], models[1], WEIGHTED_SUM, ALPHA).components.keys() == {"unet", "text_encoder"}


def test_passthrough_is_theta0(models):
    merged = merge_models(models[0], None, replace(WEIGHTED_SUM, method="passthrough"), ALPHA)
    assert merged.components["unet"].tensors == models[0].components["unet"].tensors


def test_number_of_models_must_fit_the_method(models):
    with pytest.raises(ValueError, match="weighted_sum merges two models"):
        merge_models(models[0], None, WEIGHTED_SUM, ALPHA)
    with pytest.raises(ValueError, match="passthrough takes theta0 as it is"):
        merge_models(models[0], models[1], replace(WEIGHTED_SUM, method="passthrough"), ALPHA)


@pytest.mark.parametrize(
    ("configs", "scheduler", "message"),
    [
        (
            {"unet": UNET | {"cross_attention_dim": 1024, "use_linear_projection": True}},
            {},
            r"theta0 is SD1-type \(context width 8\), theta1 is SD2-type \(context width 1024\)",
        ),
        ({}, {"prediction_type": "v_prediction"}, "theta0 predicts epsilon, theta1 predicts v_prediction"),
        ({"unet": UNET | {"block_out_channels": [4, 16, 16]}}, {}, r"unet: down_blocks.1.*: theta0 has shape .* theta1 has"),
        ({"text_encoder": TEXT_ENCODER | {"num_hidden_layers": 1}}, {}, "text_encoder: only one of theta0 and theta1 has"),
    ],
)
def test_different_models_are_refused(tmp_path, models, configs, scheduler, message):
    other = read(tmp_path, "other", CONFIGS | configs, SCHEDULER | scheduler)
    with pytest.raises(ValueError, match=message):
        merge_models(models[0], other, WEIGHTED_SUM, ALPHA)


def test_the_recipe_names_both_originals(models):
    merged = merge_models(models[0].from_source("toon"), models[1].from_source("anime"), WEIGHTED_SUM, ALPHA)
    recipe = merged.components["unet"].recipe
    assert (recipe["method"], recipe["alpha"]) == ("weighted_sum", 0.7)
    assert [recipe[theta]["source"] for theta in ("theta0", "theta1")] == ["toon", "anime"]
    assert len({recipe[theta]["sha256"] for theta in ("theta0", "theta1")}) == 2
    assert recipe["formula"] == "theta = (1 - alpha) * theta0 + alpha * theta1"
    assert recipe["direction"] == "alpha is the weight of theta1: 0 is theta0, 1 is theta1"


def values(model, name="unet"):
    return {key: tensor.read() for key, tensor in model.components[name].tensors.items()}


def test_components_and_blocks_have_weights_of_their_own(models):
    alphas = ComponentAlpha(unet=0.0, text_encoder=1.0)
    config = replace(WEIGHTED_SUM, component_alpha=alphas, blocks={"M00": 1.0, "OUT05": 1.0})
    merged = merge_models(models[0], models[1], config, 0.5)
    from_theta1 = ("mid_block", "up_blocks.2.resnets.1", "up_blocks.2.attentions.1", "conv_norm_out", "conv_out")
    for key, value in values(merged).items():
        assert np.array_equal(value, values(models[key.startswith(from_theta1)])[key]), key
    theta1 = values(models[1], "text_encoder")
    assert all(np.array_equal(value, theta1[key]) for key, value in values(merged, "text_encoder").items())


@pytest.mark.parametrize("method", ["add_difference", "ties", "dare"])
def test_methods_of_three_models(tmp_path, models, method):
    theta2 = read_model(save_diffusers(tmp_path / "theta2", random_weights(2)), None)
    config = replace(WEIGHTED_SUM, method=method)
    with pytest.raises(ValueError, match=f"{method} merges three models, and there is no theta2"):
        merge_models(models[0], models[1], config, 0.5)
    merged = values(merge_models(models[0], models[1], config, 0.5, theta2))
    assert all(np.isfinite(value).all() for value in merged.values())
    with pytest.raises(ValueError, match="weighted_sum merges two models, and there is a theta2"):
        merge_models(models[0], models[1], WEIGHTED_SUM, ALPHA, theta2)


def test_a_third_model_of_another_kind_is_refused(tmp_path, models):
    theta2 = read(tmp_path, "other", CONFIGS, SCHEDULER | {"prediction_type": "v_prediction"})
    with pytest.raises(ValueError, match="theta0 predicts epsilon, theta2 predicts v_prediction"):
        merge_models(models[0], models[1], replace(WEIGHTED_SUM, method="ties"), 0.5, theta2)
