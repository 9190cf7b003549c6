"""Whatever stands in a config.json: a model is read, or refused in one line that names the file, in no time."""

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.checkpoints.components import read_component, read_config
from stages.checkpoints.model import read_model
from tests.checkpoints.tiny import CONFIGS, SCHEDULER, TEXT_ENCODER, UNET, VAE, random_weights, save_diffusers

MOST_SECONDS = 0.5
SETTINGS = [(name, setting) for name, config in CONFIGS.items() for setting in config]
SETTINGS += [
    ("unet", setting)
    for setting in ("transformer_layers_per_block", "use_linear_projection", "class_embed_type", "_class_name")
]
SETTINGS += [("scheduler", "prediction_type"), ("index", "_class_name")]
FILES = {"scheduler": "scheduler/scheduler_config.json", "index": "model_index.json"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 20) | st.sampled_from([10**9, 2**63, -1]) | st.floats() | st.text(max_size=9),
    lambda values: st.lists(values, max_size=5) | st.dictionaries(st.text(max_size=3), values, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_diffusers(tmp_path_factory.mktemp("model"), random_weights())


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(setting=st.sampled_from(SETTINGS), value=VALUES)
def test_any_value_is_read_or_refused_in_one_line(folder, setting, value):
    part, name = setting
    path = folder / FILES.get(part, f"{part}/config.json")
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {name: value}))
    started = time.process_time()
    try:
        read_model(folder, None)
    except ValueError as error:
        assert str(folder) in str(error)
        assert str(error).isprintable(), "it has one line"
        assert len(str(error)) < len(str(path)) + 3000
    finally:
        path.write_text(before)
    assert time.process_time() - started < MOST_SECONDS


@pytest.mark.parametrize(
    ("part", "setting", "value", "message"),
    [
        ("unet", "layers_per_block", 10**9, "layers_per_block: given 1000000000: .* less than or equal to 16"),
        ("unet", "layers_per_block", 0, "layers_per_block: given 0: .* greater than or equal to 1"),
        ("unet", "layers_per_block", [1, 1], r"layers_per_block: given \[1, 1\]: needs 3 items"),
        ("unet", "layers_per_block", True, "layers_per_block: given True"),
        ("unet", "layers_per_block", "2", "layers_per_block: given 2: .* valid"),
        ("unet", "block_out_channels", [4, 8, 8.5], "block_out_channels: given 8.5"),
        ("unet", "block_out_channels", [4] * 9, "block_out_channels: given"),
        ("unet", "block_out_channels", [], "block_out_channels: given"),
        ("unet", "block_out_channels", 4, "block_out_channels: given 4"),
        ("unet", "block_out_channels", None, "block_out_channels: given None"),
        ("unet", "down_block_types", ["DownBlock2D"], "down_block_types: given .*: needs 3 items"),
        ("unet", "down_block_types", [{}, {}, {}], "down_block_types: given"),
        ("unet", "transformer_layers_per_block", -1, "transformer_layers_per_block: given -1"),
        ("unet", "cross_attention_dim", [8, 8, 8], "cross_attention_dim: given"),
        ("unet", "in_channels", 4.0, "in_channels: given 4.0"),
        ("vae", "layers_per_block", 10**9, "layers_per_block: given"),
        ("vae", "latent_channels", -4, "latent_channels: given -4"),
        ("text_encoder", "num_hidden_layers", 10**9, "num_hidden_layers: given"),
        ("text_encoder", "num_hidden_layers", "twelve", "num_hidden_layers: given twelve"),
        ("text_encoder", "vocab_size", 2**40, "vocab_size: given"),
    ],
)
def test_what_is_absurd_is_named(tmp_path, part, setting, value, message):
    save_diffusers(tmp_path, {}, {**CONFIGS, part: {**CONFIGS[part], setting: value}})
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{part}/config.json: {message}"):
        read_component(tmp_path / part, part)


@pytest.mark.parametrize("part", CONFIGS)
def test_settings_that_are_optional_may_be_left_out(tmp_path, part):
    needed = {"unet": set(UNET) - {"layers_per_block", "sample_size"}, "vae": {"block_out_channels"}, "text_encoder": set()}
    config = {setting: value for setting, value in CONFIGS[part].items() if setting in needed[part]}
    save_diffusers(tmp_path, {}, {**CONFIGS, part: config})
    assert read_config(tmp_path / part / "config.json", part) == config


def test_what_real_models_say_is_taken(tmp_path):
    """SDXL's lists, SD2's linear projections, the largest text encoder."""
    lists = {"transformer_layers_per_block": [1, 2, 10], "layers_per_block": [2, 2, 2], "use_linear_projection": True}
    configs = {"unet": UNET | lists, "vae": VAE | {"latent_channels": 16}, "text_encoder": TEXT_ENCODER | {"hidden_size": 1280}}
    save_diffusers(tmp_path, {}, configs, SCHEDULER)
    for part, config in configs.items():
        assert read_config(tmp_path / part / "config.json", part) == config
