from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stages.lora.adapters import add_adapter, load_unet
from stages.lora.expectations import expected_seconds, forward_flops, kept_bytes
from tests.drawing.tiny_models import WIDTH, save_tiny_checkpoint
from tests.lora.settings import training_config
from tests.lora.tiny_training import make_unet

CPU = torch.device("cpu")
LATENTS = torch.Size((2, 4, 8, 8))
LARGER = torch.Size((4, 4, 8, 8))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def test_operations_of_a_forward_pass_are_about_those_that_torch_counts(model):
    unet = load_unet(model)
    latents = torch.zeros(2, 4, 32, 32)  # so many places that the weights which meet words instead count for little
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(latents, torch.zeros(2), torch.zeros(2, 77, WIDTH))
    assert forward_flops(unet, latents.shape) == pytest.approx(counter.get_total_flops(), rel=0.4)


def test_larger_batches_and_trained_weights_take_longer(model):
    unet = make_unet(model)
    few = expected_seconds(unet, LATENTS, 100, CPU)
    assert expected_seconds(unet, torch.Size((4, 4, 8, 8)), 100, CPU) == pytest.approx(2 * few)
    assert expected_seconds(unet, LATENTS, 200, CPU) == pytest.approx(2 * few)
    assert expected_seconds(load_unet(model).requires_grad_(True), LATENTS, 100, CPU) > 1.2 * few


def kept_by_a_real_pass(unet, latents):
    """Bytes of all that is saved for the backward pass, without the weights."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inputs = torch.zeros(latents), torch.zeros(latents[0], dtype=torch.int64), torch.zeros(latents[0], 77, WIDTH)
        unet(*inputs, return_dict=False)
    own = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"peft_type": "lokr"}, {"peft_type": "loha"}], ids=str)
def test_what_a_forward_pass_keeps_is_known_before_it(model, settings):
    config = training_config(**settings)
    unet: Any = load_unet(model)
    add_adapter(unet, 4, config, config.target_modules, seed=0)
    unet.to(memory_format=torch.channels_last)  # as trainings have it
    for latents in (LATENTS, LARGER):
        assert kept_bytes(unet, latents, CPU, torch.float32) == pytest.approx(
            kept_by_a_real_pass(unet.train(), latents), rel=0.02
        )


def test_gradient_checkpointing_and_half_precision_keep_less(model):
    unet = make_unet(model)
    kept = kept_bytes(unet, LATENTS, CPU, torch.float32)
    assert kept_bytes(unet, LATENTS, CPU, torch.bfloat16) < kept
    unet.enable_gradient_checkpointing()
    assert kept_bytes(unet, LATENTS, CPU, torch.float32) < kept / 2
