"""What people take away: checked with diffusers' own loaders."""

import json
import math

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from stages.export import ExportConfig, stage
from tests.checkpoints.tiny import SCHEDULER, ldm_weights, random_weights, save_configs, save_diffusers

pytestmark = pytest.mark.stage

NOTHING = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
CONFIG = ExportConfig(dtype="float32", lora_dtype="float32")


@pytest.fixture
def model(tmp_path):
    return save_diffusers(tmp_path / "model", random_weights())


def test_ldm_to_diffusers_to_ldm_is_bitwise(tmp_path):
    from stages.checkpoints.model import read_model, write_model

    expected = ldm_weights(random_weights(dtype=np.float16))
    save_file(expected, tmp_path / "in.safetensors")
    read = read_model(tmp_path / "in.safetensors", save_configs(tmp_path / "configs"))
    write_model(tmp_path / "diffusers", read, "float16")
    stage(ExportConfig(dtype="float16", lora_dtype="float32"), tmp_path / "diffusers", tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    ids = written.pop("cond_stage_model.transformer.text_model.embeddings.position_ids")
    assert (ids.dtype, ids.tolist()) == (np.int64, [list(range(77))])
    assert written.keys() == expected.keys()
    assert all(written[key].tobytes() == value.tobytes() for key, value in expected.items())
    assert all(written[key].shape == value.shape for key, value in expected.items())


def test_two_runs_give_the_same_bytes(tmp_path, model):
    for name in ("a", "b"):
        stage(CONFIG, model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_recipes_of_the_parts_are_in_the_metadata(tmp_path, model):
    stage(CONFIG, model, tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        assert json.loads(file.metadata()["recipe"]).keys() == {"unet", "vae", "text_encoder"}


def test_something_else_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"model_index.json is missing"):
        stage(CONFIG, tmp_path / "folder", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("setting", ["init_lora_weights", "use_dora"])
def test_what_is_not_all_that_was_trained_is_not_written(tmp_path, setting):
    from tests.checkpoints.adapters.foreign_loras import save_incomplete

    (tmp_path / "lora").mkdir()
    save_incomplete(tmp_path / "lora", setting)
    with pytest.raises(ValueError, match=rf"pytorch_lora_weights\.safetensors: .*{setting}"):
        stage(CONFIG, tmp_path / "lora", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_dora_is_copied_as_it_is(tmp_path, model, capsys):
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    unet.add_adapter(LoraConfig(r=2, use_dora=True, target_modules=["to_q"]))
    save_lora({"unet": unet}, tmp_path / "lora")
    stage(CONFIG, tmp_path / "lora", tmp_path / "out.safetensors")
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert (tmp_path / "out.safetensors").read_bytes() == file.read_bytes()
    assert "DoRA has no keys that other programs compute alike: copied as it is" in capsys.readouterr().out


KRONECKER = {
    "LoHa": {},
    "LoHa with Tucker's core": {"use_effective_conv2d": True},
    "LoKr": {"alpha_pattern": {"conv1": 2.0}},
    "LoKr with Tucker's core": {"use_effective_conv2d": True, "r": 1},
    "LoKr of four factors": {"decompose_both": True, "r": 1},
    "LoKr of whole factors": {"r": 16, "rank_pattern": {"attn1.to_q": 32}},
}


@pytest.mark.parametrize("name", KRONECKER)
def test_other_tools_compute_from_the_file_what_was_trained(tmp_path, model, name):
    """LoHa and LoKr, by the formulas of ComfyUI, A1111 and InvokeAI; linear layers and convolutions of 1x1 and 3x3."""
    import torch
    from diffusers import UNet2DConditionModel
    from peft import LoHaConfig, LoKrConfig
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import CLIPTextModel

    from stages.checkpoints.adapters.lora_files import kohya_name
    from tests.checkpoints.adapters.foreign_loras import added

    torch.manual_seed(0)
    make = LoHaConfig if name.startswith("LoHa") else LoKrConfig
    parts = {
        "unet": (
            UNet2DConditionModel.from_pretrained(model / "unet"),
            ["to_q", "ff.net.0.proj", "proj_in", "conv1", "conv_in"],
        ),
        "text_encoder": (CLIPTextModel.from_pretrained(model / "text_encoder"), ["q_proj", "fc1"]),
    }
    for part, targets in parts.values():
        part.add_adapter(make(**{"r": 2, "alpha": 3, "init_weights": False, "target_modules": targets} | KRONECKER[name]))
    save_lora({name: part for name, (part, _) in parts.items()}, tmp_path / "lora")
    stage(CONFIG, tmp_path / "lora", tmp_path / "out.safetensors")
    layers: dict[str, dict[str, np.ndarray]] = {}
    for key, value in load_file(tmp_path / "out.safetensors").items():
        layers.setdefault(key.split(".", 1)[0], {})[key.split(".", 1)[1]] = value
    for component, (part, _) in parts.items():
        for module_name, module in part.named_modules():
            if isinstance(module, BaseTunerLayer):
                expected = module.get_delta_weight("default").detach().numpy()
                given = added(layers.pop(kohya_name(component, module_name)), expected.shape)
                assert np.abs(expected).max() > 0
                np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
    assert not layers


def test_diffusers_loads_the_single_file_with_the_same_weights_and_image(tmp_path, model):
    import torch
    from diffusers import StableDiffusionPipeline

    stage(CONFIG, model, tmp_path / "out.safetensors")
    expected = StableDiffusionPipeline.from_pretrained(model, local_files_only=True, **NOTHING)
    loaded = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "out.safetensors"), config=str(model), local_files_only=True, **NOTHING
    )
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(expected, part).state_dict(), getattr(loaded, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    images = [draw(pipeline) for pipeline in (expected, loaded)]
    assert np.array_equal(images[0], images[1])
    assert np.ptp(images[0]) > 0


def test_a_model_that_predicts_v_says_so_and_is_loaded(tmp_path, capsys):
    import torch
    from diffusers import StableDiffusionPipeline

    model = save_diffusers(tmp_path / "v", random_weights(), scheduler=SCHEDULER | {"prediction_type": "v_prediction"})
    stage(CONFIG, model, tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors")["v_pred"].shape == (0,)
    assert "parameterization: v" in capsys.readouterr().out
    loaded = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "out.safetensors"), config=str(model), local_files_only=True, **NOTHING
    )
    weights = {key: torch.from_numpy(value) for key, value in random_weights()["unet"].items()}
    assert all(torch.equal(value, weights[key]) for key, value in loaded.unet.state_dict().items())


def test_a_noise_schedule_that_a_single_file_cannot_say_is_said(tmp_path, model, capsys):
    stage(CONFIG, model, tmp_path / "out.safetensors")
    assert "cannot say" not in capsys.readouterr().out
    odd = save_diffusers(
        tmp_path / "odd", random_weights(), scheduler=SCHEDULER | {"beta_schedule": "linear", "beta_end": 0.02}
    )
    stage(CONFIG, odd, tmp_path / "out.safetensors")
    assert "cannot say beta_schedule linear, beta_end 0.02;" in capsys.readouterr().out


def draw(pipeline):
    import torch

    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    size = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "np"}
    return np.asarray(pipeline("a b", generator=generator, **size).images)


# Not alpha_pattern: diffusers 0.42 applies one alpha to all modules of a kohya file (its alphas' keys end in
# `processor.to_q_lora.down.weight`, which match no module); tests/checkpoints/adapters/test_kohya.py covers it.
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"(to_q|q_proj)": 2}}])
def test_diffusers_draws_the_same_with_the_kohya_file(tmp_path, model, settings):
    import torch
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig

    pipeline = StableDiffusionPipeline.from_pretrained(model, local_files_only=True, **NOTHING)
    plain = draw(pipeline)
    torch.manual_seed(0)
    targets = {"unet": ["to_q", "to_v", "to_out.0", "proj_in"], "text_encoder": ["q_proj", "out_proj"]}
    for part, modules in targets.items():
        lora = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=modules, **settings)
        getattr(pipeline, part).add_adapter(lora)
    save_lora({part: getattr(pipeline, part) for part in ("unet", "text_encoder")}, tmp_path / "lora")
    expected = draw(pipeline)
    stage(CONFIG, tmp_path / "lora", tmp_path / "kohya.safetensors")
    fresh = StableDiffusionPipeline.from_pretrained(model, local_files_only=True, **NOTHING)
    fresh.load_lora_weights(tmp_path / "kohya.safetensors")
    assert np.array_equal(draw(fresh), expected)
    assert not np.array_equal(expected, plain)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_fused_lora_draws_what_the_loaded_one_does(tmp_path, model, weight):
    import torch
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig

    pipeline = StableDiffusionPipeline.from_pretrained(model, local_files_only=True, **NOTHING)
    plain = draw(pipeline)
    torch.manual_seed(0)
    for part, modules in {"unet": ["to_q", "to_out.0", "proj_in", "conv1"], "text_encoder": ["q_proj", "fc1"]}.items():
        lora = LoraConfig(r=4, lora_alpha=80, init_lora_weights=False, target_modules=modules, alpha_pattern={modules[-1]: 20})
        getattr(pipeline, part).add_adapter(lora)
    save_lora({part: getattr(pipeline, part) for part in ("unet", "text_encoder")}, tmp_path / "lora")
    for part in (pipeline.unet, pipeline.text_encoder):
        scale_layers(part, weight)
    expected = draw(pipeline)
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    stage(CONFIG, tmp_path / "lora", tmp_path / "kohya.safetensors")
    for lora in (file, tmp_path / "kohya.safetensors"):
        stage(CONFIG, model, tmp_path / "out.safetensors", lora, weight)
        fused = StableDiffusionPipeline.from_single_file(
            str(tmp_path / "out.safetensors"), config=str(model), local_files_only=True, **NOTHING
        )
        np.testing.assert_allclose(draw(fused), expected, atol=2e-5)
    assert np.abs(expected - plain).max() > 1e-3
    with safe_open(tmp_path / "out.safetensors", "np") as written:
        assert json.loads(written.metadata()["recipe"])["unet"]["lora"]["weight"] == weight


def scale_layers(module, weight):
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.scale_layer(weight)


def test_a_lora_of_another_model_is_not_fused(tmp_path, model):
    name = "lora_unet_down_blocks_9_attentions_0_proj_in"
    tensors = {"lora_down.weight": np.ones((2, 4)), "lora_up.weight": np.ones((4, 2)), "alpha": np.array(1.0)}
    save_file({f"{name}.{part}": value.astype(np.float32) for part, value in tensors.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=rf"does not belong to this model.*{name}"):
        stage(CONFIG, model, tmp_path / "out.safetensors", tmp_path / "lora.safetensors")


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(tmp_path, model, weight):
    save_file({"lora_unet_x.alpha": np.ones(1, np.float32)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="--weight: given"):
        stage(CONFIG, model, tmp_path / "out.safetensors", tmp_path / "lora.safetensors", weight)


@pytest.mark.parametrize("weight", [0.5, 0.0, math.nan])
def test_a_weight_without_a_lora_to_fuse_is_refused(tmp_path, model, weight):
    from tests.checkpoints.adapters.foreign_loras import save

    (tmp_path / "lora").mkdir()
    save(tmp_path, "no alpha").rename(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    for source in (model, tmp_path / "lora"):
        with pytest.raises(ValueError, match=rf"--weight: given {weight:g} without --lora"):
            stage(CONFIG, source, tmp_path / "out.safetensors", None, weight)
    assert not (tmp_path / "out.safetensors").exists()


def save_lora(parts, folder):
    from peft import get_peft_model_state_dict

    tensors, settings = {}, {}
    for part, module in parts.items():
        tensors |= {f"{part}.{key}": value.detach().numpy() for key, value in get_peft_model_state_dict(module).items()}
        settings |= {f"{part}.{key}": value for key, value in module.peft_config["default"].to_dict().items()}
    folder.mkdir()
    metadata = {"lora_adapter_metadata": json.dumps(settings, sort_keys=True, default=sorted)}
    save_file(tensors, folder / "pytorch_lora_weights.safetensors", metadata=metadata)
