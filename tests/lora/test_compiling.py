import pytest
import torch
from diffusers import UNet2DConditionModel

from stages.lora.batches import validation_batches
from stages.lora.compiling import compile_unet
from tests.comparison.tiny_models import save_tiny_checkpoint
from tests.lora.test_training import DRAWS, make_stream, make_unet, train

CPU = torch.device("cpu")
ENOUGH = 10**9


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def is_compiled(unet):
    return unet._compiled_call_impl is not None


def test_a_long_run_is_compiled_and_a_short_one_is_not(model, capsys):
    for steps, compiled in ((10, False), (ENOUGH, True)):
        unet = make_unet(model)
        compile_unet(unet, steps, CPU)
        assert is_compiled(unet) == compiled
        assert ("the UNet is compiled" in capsys.readouterr().out) == compiled


def test_not_without_a_compiler_nor_with_gradient_checkpointing(model, monkeypatch):
    unet = make_unet(model)
    unet.enable_gradient_checkpointing()
    compile_unet(unet, ENOUGH, CPU)
    assert not is_compiled(unet)
    monkeypatch.setenv("PATH", "")
    unet = make_unet(model)
    compile_unet(unet, ENOUGH, CPU)
    assert not is_compiled(unet)


def test_compiled_training_is_the_same_training(model, monkeypatch):
    """To float32 rounding as without compiling, and to the bit when it is run again.

    Without the last step, C++, which takes minutes.
    """
    stream = make_stream()
    held_out = validation_batches(stream.examples, DRAWS, batch_size=3)
    options = {"held_out": held_out, "validation_steps": 2}
    eager = train(model, stream, **options)[0]
    whole = UNet2DConditionModel.compile
    monkeypatch.setattr(UNet2DConditionModel, "compile", lambda unet, dynamic, options: whole(unet, backend="aot_eager"))
    monkeypatch.setattr("tests.lora.test_training.make_unet", compiled_unet)
    first, again = (train(model, stream, **options)[0] for _ in range(2))
    torch.testing.assert_close(first, eager, rtol=1e-3, atol=1e-4)
    assert torch.equal(first, again)


def compiled_unet(model, **settings):
    unet = make_unet(model, **settings)
    compile_unet(unet, ENOUGH, CPU)
    assert is_compiled(unet)
    return unet
