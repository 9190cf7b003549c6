"""Every kind of adapter: begins as nothing added, and the file gives the trained model back to the bit."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from stages.checkpoints.adapters.lora_files import read_lora
from stages.checkpoints.file_names import LORA_FILE
from stages.drawing.loaded_models import load_lora, load_models
from stages.drawing.lora_loading import attach
from stages.encoding.prompts import load_text_encoder
from stages.lora.adapters import add_adapter, idle_patterns, trained_parameters, write_lora
from stages.lora.text_encoder import TARGET_MODULES
from stages.lora.tuned_model import load_unet
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.settings import adapter_config
from tests.lora.tiny_adapters import KINDS, MID, TARGETS, fresh_unet, pipeline_of, predict, shake, trained_unet

CPU = torch.device("cpu")
FEED_FORWARD = ["ff.net.0.proj", "ff.net.2"]
CONVOLUTIONS = ["conv1", "conv2", "conv_in", "proj_in"]
LAYERS = {"attention": TARGETS, "feed-forward": FEED_FORWARD, "convolutions": CONVOLUTIONS}
FOR_DIFFUSERS = [kind for kind, settings in KINDS.items() if "peft_type" not in settings]
ON_CHANGED_WEIGHTS = ("pissa", "olora")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_file_gives_the_trained_model_back(model, tmp_path, kind, layers):
    """To the bit, as adapters and fused as they are for drawing."""
    unet = trained_unet(model, targets=LAYERS[layers], **KINDS[kind]).eval()
    write_lora({"unet": unet}, tmp_path / LORA_FILE)
    loaded = load_unet(model).eval()
    plain = predict(loaded)
    assert attach({"unet": loaded}, tmp_path / LORA_FILE) == ["unet"]
    expected = predict(unet)
    assert torch.equal(predict(loaded), expected)
    assert not torch.allclose(expected, plain, atol=1e-4)

    models = load_models(model, CPU)
    load_lora(models, tmp_path)
    unet.fuse_lora()
    assert torch.equal(predict(models.unet), predict(unet))
    torch.testing.assert_close(predict(models.unet), expected, rtol=1e-3, atol=1e-4)
    assert not any("lora" in name or "lokr" in name or "hada" in name for name in models.unet.state_dict())


@pytest.mark.parametrize("kind", FOR_DIFFUSERS)
def test_diffusers_loads_it_to_the_bit(model, tmp_path, kind):
    unet = trained_unet(model, targets=[*TARGETS, *FEED_FORWARD, "conv1"], **KINDS[kind]).eval()
    write_lora({"unet": unet}, tmp_path / LORA_FILE)
    pipeline = pipeline_of(unet=load_unet(model))
    pipeline.load_lora_weights(tmp_path)
    assert torch.equal(predict(pipeline.unet), predict(unet))


@pytest.mark.parametrize("alpha_pattern", [{f"{MID}.attn1.to_q": 64.0, "attn1.to_q": 0.5}, {"to_q": 3.0, "attn1.to_q": 0.5}])
@pytest.mark.parametrize("lora_alpha", [8.0, "rank"])
def test_of_several_patterns_the_first_counts(model, tmp_path, lora_alpha, alpha_pattern):
    """In training as in the file, which names each layer whole: the order of its keys says nothing."""
    ranks = {"to_q": 6, "attn1.to_q": 2, "attn1.to_v": 3}
    unet: Any = trained_unet(model, rank_pattern=ranks, lora_alpha=lora_alpha, alpha_pattern=alpha_pattern)
    layer = unet.get_submodule(f"{MID}.attn1.to_q")
    assert (layer.r["default"], layer.lora_alpha["default"]) == (6, next(iter(alpha_pattern.values())))
    assert unet.get_submodule(f"{MID}.attn1.to_v").lora_alpha["default"] == (3 if lora_alpha == "rank" else 8)
    write_lora({"unet": unet}, tmp_path / LORA_FILE)
    settings = read_lora(tmp_path / LORA_FILE).settings
    names = [name for name, _ in unet.named_modules()]
    assert settings["unet.rank_pattern"].keys() | settings["unet.alpha_pattern"].keys() <= set(names)
    for module in read_lora(tmp_path / LORA_FILE).modules.values():
        trained = unet.get_submodule(module.key.removeprefix("unet."))
        assert (module.rank, module.scale) == (trained.r["default"], trained.scaling["default"])


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        ({"rank_pattern": {"attn1.to_q": 2, "to_q": 6}, "alpha_pattern": {"to_k": 2.0}}, []),
        (
            {"rank_pattern": {"to_q": 6, "attn1.to_q": 2}},
            ["rank_pattern: 'attn1.to_q' changes nothing: 'to_q' stands before it and names its layers too"],
        ),
        (
            {"alpha_pattern": {"to_k": 2.0, "conv1": 3.0}},
            ["alpha_pattern: 'conv1' changes nothing: it names no layer with an adapter"],
        ),
    ],
)
def test_patterns_that_change_nothing_are_named(model, settings, problems):
    assert idle_patterns(fresh_unet(model, **settings), adapter_config(**settings)) == problems


@pytest.mark.parametrize("kind", ["lokr", "loha"])
def test_diffusers_refuses_what_the_help_says(model, tmp_path, kind):
    write_lora({"unet": trained_unet(model, **KINDS[kind])}, tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipeline_of(unet=load_unet(model)).load_lora_weights(tmp_path)


def test_diffusers_leaves_out_what_the_help_says(model, tmp_path):
    """The lengths that DoRA learns on the text encoder."""
    text_encoder: Any = load_text_encoder(model, CPU)[1]
    add_adapter(text_encoder, 2, adapter_config(use_dora=True), TARGET_MODULES, seed=0)
    shake(text_encoder)
    write_lora({"text_encoder": text_encoder}, tmp_path / LORA_FILE)
    pipeline = pipeline_of(unet=load_unet(model), text_encoder=load_text_encoder(model, CPU)[1])
    pipeline.load_lora_weights(tmp_path)
    ids = torch.arange(20).reshape(2, 10)
    drawn, trained = (each(ids).last_hidden_state for each in (pipeline.text_encoder, text_encoder))
    assert not torch.allclose(drawn, trained, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_nothing_added(model, kind):
    torch.testing.assert_close(predict(fresh_unet(model, **KINDS[kind]).eval()), predict(load_unet(model)))


@pytest.mark.parametrize("kind", ["orthogonal", *ON_CHANGED_WEIGHTS])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"to_q": 4}, "alpha_pattern": {"to_k": 3.0}}])
def test_first_weights_of_other_methods(model, tmp_path, kind, settings):
    """PiSSA and OLoRA change the model's weights; their files are for the model as it was."""
    unet, plain = load_unet(model), predict(load_unet(model))
    config = adapter_config(init_lora_weights=kind, **settings)
    first = add_adapter(unet, 2, config, TARGETS, seed=0)
    assert bool(first) == (kind in ON_CHANGED_WEIGHTS)
    torch.testing.assert_close(predict(unet), plain, rtol=1e-4, atol=1e-5)
    shake(unet)
    write_lora({"unet": unet}, tmp_path / LORA_FILE, {"unet": first})
    loaded = load_unet(model)
    attach({"unet": loaded}, tmp_path / LORA_FILE)
    torch.testing.assert_close(predict(loaded), predict(unet), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(predict(loaded), plain, atol=1e-3)


def test_orthogonal_begins_with_two_matrices_whose_product_is_nothing(model):
    parameters = trained_parameters(fresh_unet(model, rank=4, init_lora_weights="orthogonal"))
    for name, down in parameters.items():
        if "lora_A" in name:
            up = parameters[name.replace("lora_A", "lora_B")]
            assert up.norm() > 0
            assert (up @ down).norm() < 1e-5 * up.norm() * down.norm()


@pytest.mark.parametrize("kind", ["orthogonal", "pissa"])
def test_methods_for_linear_layers_are_refused_on_convolutions(model, kind):
    with pytest.raises(ValueError, match="target_modules, init_lora_weights: PEFT refuses them together"):
        fresh_unet(model, targets=["conv1"], init_lora_weights=kind)


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "loha"])
def test_adapter_of_a_text_encoder_comes_back_too(model, tmp_path, kind):
    unet, config = trained_unet(model, **KINDS[kind]), adapter_config(**KINDS[kind])
    _, text_encoder = load_text_encoder(model, CPU)
    add_adapter(text_encoder, 2, config, TARGET_MODULES, seed=0)
    shake(text_encoder)
    write_lora({"unet": unet, "text_encoder": text_encoder}, tmp_path / LORA_FILE)
    models = load_models(model, CPU)
    ids = torch.arange(20).reshape(2, 10)
    plain = models.text_encoder(ids).last_hidden_state
    load_lora(models, tmp_path)
    assert torch.equal(models.text_encoder(ids).last_hidden_state, text_encoder(ids).last_hidden_state)
    assert not torch.allclose(models.text_encoder(ids).last_hidden_state, plain, atol=1e-3)
    unet.fuse_lora()
    assert torch.equal(predict(models.unet), predict(unet.eval()))


@pytest.mark.parametrize("kind", KINDS)
def test_same_file_each_time(model, tmp_path, kind):
    for name in ("one.safetensors", "two.safetensors"):
        write_lora({"unet": trained_unet(model, **KINDS[kind])}, tmp_path / name, base={"base_unet_sha256": "abc"})
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert str(model).encode() not in (tmp_path / "one.safetensors").read_bytes()
    settings = read_lora(tmp_path / "one.safetensors").settings
    assert settings["base_unet_sha256"] == "abc"
    assert settings["unet.r"] == 2
    assert {tensor.dtype for tensor in load_file(tmp_path / "one.safetensors").values()} == {torch.float32}


def test_lokr_of_another_architecture_is_refused(model, tmp_path):
    write_lora({"unet": trained_unet(model, peft_type="lokr")}, tmp_path / LORA_FILE)
    make: Any = UNet2DConditionModel
    other = make(**dict(load_unet(model).config) | {"block_out_channels": (8, 8)})
    with pytest.raises(ValueError, match="does not fit this model"):
        attach({"unet": other}, tmp_path / LORA_FILE)
