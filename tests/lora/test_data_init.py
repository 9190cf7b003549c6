"""First weights that come from the data: what they are, by hand, and what they leave alone."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from stages.checkpoints.adapters.lora_files import read_lora
from stages.checkpoints.file_names import LORA_FILE
from stages.drawing.lora_loading import attach
from stages.lora import data_init
from stages.lora.adapters import trained_parameters, write_lora
from stages.lora.data_init import make_passes
from stages.lora.run import TrainedPrompts
from stages.lora.tuned_model import load_noise_scheduler, load_unet, prepare_model
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.settings import make_run
from tests.lora.tiny_adapters import predict, shake
from tests.lora.tiny_training import make_stream

KINDS = ["eva", "corda"]
RANK = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def fewer():
    with patch.object(data_init, "SAMPLES", 24):
        yield


def run_of(model, kind, **changes):
    given = {"train_batch_size": 4, "lora_alpha": "rank", "rank": RANK, "streams": [make_stream()]} | changes
    return make_run(model, init_lora_weights=kind, **given)


def adapters_of(unet) -> dict[str, Any]:
    return {name: layer for name, layer in unet.named_modules() if hasattr(layer, "lora_A")}


def inputs_of(model, run, size) -> dict[str, torch.Tensor]:
    """What each layer with an adapter is given in one round over the samples, (N, D)."""
    plain = load_unet(model)
    given: dict[str, list[torch.Tensor]] = {}
    for name in adapters_of(prepare_model(replace(run, config=replace(run.config, init_lora_weights="gaussian"))).model):
        plain.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: given.setdefault(name, []).append(inputs[0].detach().flatten(0, -2))
        )
    passes = make_passes(run, plain, load_noise_scheduler(model), speaks=False)
    with torch.no_grad():
        for number in range(data_init.SAMPLES // size):
            passes.forward(passes.batch(number, size))
    return {name: torch.cat(tensors) for name, tensors in given.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_nothing_added_and_the_file_gives_the_trained_model_back(model, tmp_path, kind):
    tuned = prepare_model(run_of(model, kind))
    torch.testing.assert_close(predict(tuned.model), predict(load_unet(model)), rtol=1e-4, atol=1e-5)
    assert bool(tuned.first_weights["unet"]) == (kind == "corda")
    shake(tuned.model)
    write_lora(tuned.parts, tmp_path / LORA_FILE, tuned.first_weights)
    settings = read_lora(tmp_path / LORA_FILE).settings
    assert (settings["unet.init_lora_weights"], settings["unet.r"]) == (True, RANK * (1 + (kind == "corda")))
    assert settings["unet.eva_config"] is settings["unet.corda_config"] is None
    loaded = load_unet(model)
    attach({"unet": loaded}, tmp_path / LORA_FILE)
    torch.testing.assert_close(predict(loaded), predict(tuned.model), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(predict(loaded), predict(load_unet(model)), atol=1e-3)


def test_eva_begins_with_the_directions_in_which_inputs_vary_most(model):
    run = run_of(model, "eva")
    tuned, given = prepare_model(run), inputs_of(model, run, 4)
    for name, layer in adapters_of(tuned.model).items():
        rows, down = given[name], layer.lora_A["default"].weight.detach()
        torch.testing.assert_close(down @ down.T, torch.eye(RANK), rtol=1e-4, atol=1e-4)
        assert not layer.lora_B["default"].weight.any()
        centred = rows - rows.mean(dim=0)
        most = torch.linalg.svdvals(centred)[:RANK].square().sum()
        # It stops where its directions hardly move, and adds up batch by batch.
        assert (centred @ down.T).square().sum() > 0.9 * most, name


def test_corda_begins_with_the_main_directions_of_a_weight_as_the_data_weigh_them(model):
    run = run_of(model, "corda")
    tuned, given = prepare_model(run), inputs_of(model, run, 1)
    plain: Any = load_unet(model)
    for name, layer in adapters_of(tuned.model).items():
        weight, rows = plain.get_submodule(name).weight.detach().double(), given[name].double()
        parts = [part / part.max().abs() for part in rows.split(len(rows) // data_init.SAMPLES)]
        covariance = torch.stack([part.T @ part for part in parts]).mean(dim=0)
        covariance += 0.01 * covariance.diag().mean() * torch.eye(len(covariance))
        u, s, vh = torch.linalg.svd(weight @ covariance, full_matrices=False)
        expected = (u[:, :RANK] * s[:RANK]) @ (vh[:RANK] @ covariance.inverse())
        added = layer.lora_B["default"].weight.detach().double() @ layer.lora_A["default"].weight.detach().double()
        torch.testing.assert_close(added, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())
        torch.testing.assert_close(layer.base_layer.weight.detach().double(), weight - added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_data_give_the_same_bytes_and_other_data_others(model, kind):
    def first(**changes):
        parameters = trained_parameters(prepare_model(run_of(model, kind, **changes)).model)
        return torch.cat([each.detach().flatten() for each in parameters.values()])

    assert torch.equal(first(), first())
    stream = make_stream()
    other = replace(stream, examples=replace(stream.examples, mean=stream.examples.mean.flip(2)))
    assert not torch.equal(first(streams=[other]), first())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_in_the_model_but_its_adapter(model, kind):
    unet, plain = prepare_model(run_of(model, kind)).model, prepare_model(run_of(model, "gaussian")).model
    assert unet.state_dict().keys() == plain.state_dict().keys()
    assert not any(module._forward_hooks for module in unet.modules())
    left = {name for module in unet.modules() for name in vars(module)} - {
        name for module in plain.modules() for name in vars(module)
    }
    assert not left


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_encoder_begins_with_the_data_too(model, kind):
    stream = make_stream()
    numbers = replace(stream.examples, prompt_embeds=torch.arange(5), empty_prompt_embeds=torch.tensor(0))
    prompts = TrainedPrompts([f"a portrait, {number}" for number in range(5)], 0)
    changes = {"streams": [replace(stream, examples=numbers)], "trained_prompts": prompts, "train_text_encoder": True}
    tuned = prepare_model(run_of(model, kind, **changes))
    assert bool(tuned.first_weights["text_encoder"]) == (kind == "corda")
    factors = {name: layer.lora_A["default"].weight for name, layer in adapters_of(tuned.parts["text_encoder"]).items()}
    plain = prepare_model(run_of(model, "gaussian", **changes))
    for name, layer in adapters_of(plain.parts["text_encoder"]).items():
        assert not torch.equal(factors[name], layer.lora_A["default"].weight)


def test_eva_ends_where_its_directions_do_not_settle(model):
    with pytest.raises(ValueError, match="eva: after 20 rounds of 24 samples its directions still move: take a lower rank"):
        prepare_model(run_of(model, "eva", rank=512, train_batch_size=1))


@pytest.mark.parametrize("kind", KINDS)
def test_data_of_another_model_are_refused_before_they_are_looked_at(model, kind):
    stream = make_stream()
    narrow = replace(stream, examples=replace(stream.examples, prompt_embeds=stream.examples.prompt_embeds[..., :4]))
    with pytest.raises(ValueError, match="the prompts are embedded in 4 numbers"):
        prepare_model(run_of(model, kind, streams=[narrow]))


def test_corda_is_refused_on_convolutions(model):
    with pytest.raises(ValueError, match="target_modules, init_lora_weights: PEFT refuses them together"):
        prepare_model(run_of(model, "corda", target_modules=["conv1"]))
