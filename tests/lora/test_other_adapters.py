"""Adapters that only PEFT has, by their names: trained, written, and read again to the same prediction."""

import json
from typing import Any

import pytest
import torch
from peft import PeftConfig, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stages.checkpoints.adapters.lora_files import other_adapters, read_lora
from stages.drawing.loaded_models import load_lora, load_models
from stages.drawing.lora_loading import attach
from stages.export import ExportConfig
from stages.export import stage as export
from stages.lora.adapters import add_adapter, trained_parameters, write_lora
from stages.lora.tuned_model import load_unet
from tests.drawing.tiny_models import WIDTH, save_tiny_checkpoint
from tests.lora.settings import adapter_config
from tests.lora.tiny_training import batches_until_power_cut, make_stream, train

CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    "OFT": {"oft_block_size": "rank", "r": 0},
    "BOFT": {"boft_block_size": "rank"},
    "FOURIERFT": {"n_frequency": 16},
    "HRA": {"r": "rank"},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": "rank"},
    "RANDLORA": {"r": "rank"},
    "ROAD": {"group_size": "rank"},
    "DELORA": {"r": "rank"},
    "HIRA": {"r": "rank"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def prediction(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sample, embeds = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, WIDTH, generator=generator)
    with torch.no_grad():
        return unet.eval()(sample, torch.tensor([10, 500]), embeds, return_dict=False)[0]


def trained(model, kind: str):
    """A UNet with such an adapter, whose weights were changed as training changes them."""
    unet = load_unet(model)
    config = adapter_config(peft={"peft_type": kind, **KINDS[kind]})
    add_adapter(unet, 4, config, config.target_modules, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trained_parameters(unet).values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return unet


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_trained_is_read_again_to_the_same_prediction(model, tmp_path, kind):
    unet = trained(model, kind)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    write_lora({"unet": unet}, file)
    first = file.read_bytes()
    write_lora({"unet": unet}, file)
    assert file.read_bytes() == first
    again = load_unet(model)
    assert attach({"unet": again}, file) == ["unet"]
    assert torch.equal(prediction(again), prediction(unet))
    assert not torch.equal(prediction(again), prediction(load_unet(model)))
    assert other_adapters(file)["unet"]["peft_type"] == kind
    with pytest.raises(ValueError, match=f"holds {kind}, which PEFT alone computes"):
        read_lora(file)


@pytest.mark.parametrize("kind", ["OFT", "LOKR"])
def test_the_lines_of_a_card_read_it_with_peft_alone(model, tmp_path, kind):
    """As report/templates/card.md.jinja has them."""
    unet = trained(model, kind) if kind in KINDS else load_unet(model)
    if kind == "LOKR":
        config = adapter_config(peft_type="lokr")
        add_adapter(unet, 4, config, config.target_modules, seed=0)
        with torch.no_grad():
            for weight in trained_parameters(unet).values():
                weight.add_(0.05)
    write_lora({"unet": unet}, tmp_path / "x.safetensors")
    file: Any = safe_open(tmp_path / "x.safetensors", "pt")
    settings, start = json.loads(file.metadata()["lora_adapter_metadata"]), "unet."
    again: Any = load_unet(model)
    of_part = {key[len(start) :]: value for key, value in settings.items() if key.startswith(start)}
    again.add_adapter(PeftConfig.from_peft_type(**of_part))
    weights = {key[len(start) :]: file.get_tensor(key) for key in file.keys() if key.startswith(start)}  # noqa: SIM118
    set_peft_model_state_dict(again, weights, "default")
    assert torch.equal(prediction(again), prediction(unet))


def test_such_an_adapter_trains_and_goes_on_after_an_interruption(model, tmp_path):
    stream, options = make_stream(), {"peft": {"peft_type": "oft", "oft_block_size": "rank"}, "learning_rate": 1e-2}
    weights, history = train(model, stream, **options)
    assert history[0].loss != history[-1].loss

    kept = options | {"folder": tmp_path, "checkpointing_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        train(model, stream, batches=batches_until_power_cut(stream, 5), **kept)
    assert torch.equal(train(model, stream, **kept)[0], weights)


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"r": 4}, r"peft: peft_type is missing: name the kind, such as \{peft_type: OFT"),
        ({"peft_type": "LoRA", "r": 4}, "peft: given LoRA: it has settings of its own: set peft_type to lora"),
        ({"peft_type": "OFT", "target_modules": ["a"]}, "peft: target_modules has a setting of its own"),
    ],
)
def test_what_has_a_setting_of_its_own_is_refused(peft, message):
    with pytest.raises(ValueError, match=message):
        adapter_config(peft=peft)


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        ({"peft_type": "NOFT"}, "peft: given NOFT: PEFT .* has no such adapter; it has ADALORA"),
        ({"peft_type": "OFT", "blocks": 3}, "peft: PEFT refuses .*blocks"),
        ({"peft_type": "OFT", "oft_block_size": 4, "r": 4}, "peft: PEFT refuses .*"),
        ({"peft_type": "VERA", "r": 4}, "peft: PEFT refuses .* on these layers: .*does not support PeftType.VERA"),
    ],
)
def test_what_peft_refuses_is_said_in_its_words(model, peft, message):
    config, unet = adapter_config(peft=peft), load_unet(model)
    with pytest.raises(ValueError, match=message):
        add_adapter(unet, 4, config, config.target_modules, seed=0)


@pytest.fixture
def folder(model, tmp_path):
    """What a training of OFT leaves."""
    write_lora({"unet": trained(model, "OFT")}, tmp_path / "pytorch_lora_weights.safetensors")
    return tmp_path


def test_it_is_drawn_whole_or_not_at_all(model, folder):
    whole, none = load_models(model, CPU), load_models(model, CPU)
    load_lora(whole, folder)
    load_lora(none, folder, 0.0)
    assert torch.equal(prediction(none.unet), prediction(load_unet(model)))
    unet = trained(model, "OFT")
    assert torch.equal(prediction(whole.unet), prediction(unet))
    with pytest.raises(ValueError, match="OFT has no strength: its scale is 1, or 0 for the model without it"):
        load_lora(load_models(model, CPU), folder, 0.5)


def test_it_is_exported_as_it_is_and_not_fused(model, folder, capsys):
    config = ExportConfig(dtype="float32", lora_dtype="float16")
    export(config, folder, folder / "out.safetensors")
    assert (folder / "out.safetensors").read_bytes() == (folder / "pytorch_lora_weights.safetensors").read_bytes()
    assert "OFT, which no other program reads: copied as it is, for PEFT" in capsys.readouterr().out


def test_a_damaged_file_is_named(model, folder):
    file = folder / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    settings = {"lora_adapter_metadata": json.dumps({"unet.peft_type": "NOFT"})}
    save_file(tensors, file, metadata=settings)
    with pytest.raises(ValueError, match=r"pytorch_lora_weights\.safetensors: does not fit this model or this PEFT"):
        attach({"unet": load_unet(model)}, file)
