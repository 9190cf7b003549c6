from functools import partialmethod

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from stages.lora.adapters import load_unet
from stages.lora.batches import validation_batches
from stages.lora.compiling import EXPECTED, compile_repeated_blocks, forward_flops, saved_seconds
from tests.comparison.tiny_models import WIDTH, save_tiny_checkpoint
from tests.lora.test_training import DRAWS, make_stream, make_unet, train

CPU = torch.device("cpu")
LATENTS = torch.Size((2, 4, 8, 8))
ENOUGH = 10**9


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def is_compiled(unet):
    return any(module._compiled_call_impl is not None for module in unet.modules())


def test_operations_of_a_forward_pass_are_about_those_that_torch_counts(model):
    unet = load_unet(model)
    latents = torch.zeros(2, 4, 32, 32)  # so many places that the weights which meet words instead count for little
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(latents, torch.zeros(2), torch.zeros(2, 77, WIDTH))
    assert forward_flops(unet, latents.shape) == pytest.approx(counter.get_total_flops(), rel=0.4)


def test_a_long_run_is_compiled_and_a_short_one_is_not(model, capsys):
    for steps, compiled in ((10, False), (ENOUGH, True)):
        unet = make_unet(model)
        compile_repeated_blocks(unet, LATENTS, steps, CPU)
        assert is_compiled(unet) == compiled
        assert ("blocks are compiled" in capsys.readouterr().out) == compiled


def test_larger_batches_and_trained_weights_save_more(model):
    unet, expected = make_unet(model), EXPECTED["cpu"]
    few = saved_seconds(unet, LATENTS, 100, expected)
    assert saved_seconds(unet, torch.Size((4, 4, 8, 8)), 100, expected) == pytest.approx(2 * few)
    assert saved_seconds(unet, LATENTS, 200, expected) == pytest.approx(2 * few)
    assert saved_seconds(load_unet(model).requires_grad_(True), LATENTS, 100, expected) > 1.2 * few


def test_not_without_a_compiler_nor_with_gradient_checkpointing(model, monkeypatch):
    unet = make_unet(model)
    unet.enable_gradient_checkpointing()
    compile_repeated_blocks(unet, LATENTS, ENOUGH, CPU)
    assert not is_compiled(unet)
    monkeypatch.setenv("PATH", "")
    unet = make_unet(model)
    compile_repeated_blocks(unet, LATENTS, ENOUGH, CPU)
    assert not is_compiled(unet)


def test_compiled_training_is_the_same_training(model, monkeypatch):
    """To float32 rounding as without compiling, and to the bit when it is run again.

    Without the last step, C++, which takes minutes.
    """
    stream = make_stream()
    held_out = validation_batches(stream.examples, DRAWS, batch_size=3)
    options = {"held_out": held_out, "validation_steps": 2}
    eager = train(model, stream, **options)[0]
    whole = partialmethod(UNet2DConditionModel.compile_repeated_blocks, backend="aot_eager")
    monkeypatch.setattr(UNet2DConditionModel, "compile_repeated_blocks", whole)
    monkeypatch.setattr("tests.lora.test_training.make_unet", compiled_unet)
    first, again = (train(model, stream, **options)[0] for _ in range(2))
    torch.testing.assert_close(first, eager, rtol=1e-3, atol=1e-4)
    assert torch.equal(first, again)


def compiled_unet(model, **settings):
    unet = make_unet(model, **settings)
    compile_repeated_blocks(unet, LATENTS, ENOUGH, CPU)
    assert is_compiled(unet)
    return unet
