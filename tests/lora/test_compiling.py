from typing import Any

import pytest
import torch
from torch import nn

from stages.lora.batches import validation_batches
from stages.lora.compiling import WHOLE, CompiledForward, compile_unet
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.tiny_training import DRAWS, make_stream, make_unet, train

CPU = torch.device("cpu")
ENOUGH = 10**9
QUICK = {"backend": "aot_eager"}
"""Without the last step, C++, which takes minutes for a UNet."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path


def is_compiled(unet):
    return isinstance(unet.forward, CompiledForward)


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


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"peft_type": "lokr"}, {"peft_type": "loha"}])
def test_not_with_adapters_that_look_at_values(model, settings):
    unet = make_unet(model, **settings)
    compile_unet(unet, ENOUGH, CPU)
    assert not is_compiled(unet)


def test_compiled_training_is_the_same_training(model, folder, monkeypatch):
    """As without compiling, and to the bit when what was compiled is read."""
    stream = make_stream()
    held_out = validation_batches(stream.examples, DRAWS, batch_size=3)
    options = {"held_out": held_out, "validation_steps": 2}
    eager = train(model, stream, **options)[0]
    monkeypatch.setattr("stages.lora.compiling.WHOLE", QUICK)
    monkeypatch.setattr("tests.lora.tiny_training.make_unet", compiled_unet)
    first = train(model, stream, **options)[0]
    torch.testing.assert_close(first, eager, rtol=1e-3, atol=1e-4)
    assert len(list(folder.glob("unet-*"))) == 1
    monkeypatch.setattr("torch.compile", None)
    assert torch.equal(train(model, stream, **options)[0], first)


def compiled_unet(model, **settings):
    unet = make_unet(model, **settings)
    compile_unet(unet, ENOUGH, CPU)
    assert is_compiled(unet)
    return unet


class SmallUnet(nn.Module):
    """What a UNet is called like, and little inside."""

    device = CPU

    def __init__(self, scale=2.0, folder="here"):
        super().__init__()
        self.config = {"scale": scale, "_name_or_path": folder}
        torch.manual_seed(0)
        self.convolution, self.linear = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 4)

    def forward(self, latents, timesteps, prompt_embeds, return_dict=True):
        shift = self.linear(prompt_embeds).mean(1) + timesteps[:, None]
        predicted = self.config["scale"] * torch.tanh(self.convolution(latents) + shift[:, :, None, None])
        return {"sample": predicted} if return_dict else (predicted,)


def small_unet(how, *settings) -> Any:
    unet: Any = SmallUnet(*settings)
    unet.forward = CompiledForward(unet, how)
    return unet


def inputs(size=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, size, size, generator=generator), torch.arange(2), torch.randn(2, 3, 8, generator=generator)


def prediction_and_gradient(unet, size=6):
    unet.zero_grad()
    (predicted,) = unet(*inputs(size), return_dict=False)
    predicted.square().sum().backward()
    gradient = unet.convolution.weight.grad
    assert gradient is not None
    return predicted.detach(), gradient


def test_the_gradient_reaches_prompts_that_are_trained(folder):
    """As with the text encoder's LoRA."""
    gradients = []
    for unet in (SmallUnet(), small_unet(QUICK)):
        latents, timesteps, prompt_embeds = inputs()
        prompt_embeds.requires_grad_()
        unet(latents, timesteps, prompt_embeds, return_dict=False)[0].square().sum().backward()
        gradients.append(prompt_embeds.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


@pytest.mark.stage
def test_code_in_c_gives_the_same_numbers_compiled_or_read(folder, monkeypatch):
    expected = prediction_and_gradient(SmallUnet())
    first = prediction_and_gradient(small_unet(WHOLE))
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)  # sums of 72 products each
    monkeypatch.setattr("torch.compile", None)
    for tensor, again in zip(first, prediction_and_gradient(small_unet(WHOLE)), strict=True):
        assert torch.equal(tensor, again)


def test_a_file_that_was_cut_short_is_compiled_anew(folder, capsys):
    expected = prediction_and_gradient(small_unet(QUICK))
    (file,) = folder.glob("unet-*")
    file.write_bytes(file.read_bytes()[:100])
    torch.testing.assert_close(prediction_and_gradient(small_unet(QUICK)), expected, rtol=0, atol=0)
    assert f"{file}: compiled anew" in capsys.readouterr().out
    assert file.stat().st_size > 100


def test_a_bit_that_flipped_is_seen_before_anything_is_executed(folder, capsys):
    expected = prediction_and_gradient(small_unet(QUICK))
    (file,) = folder.glob("unet-*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    torch.testing.assert_close(prediction_and_gradient(small_unet(QUICK)), expected, rtol=0, atol=0)
    said = capsys.readouterr().out
    assert f"{file}: compiled anew, because it is not what was written; set aside as {folder / 'damaged'}" in said
    assert (folder / "damaged").read_bytes() == content


def test_nothing_is_executed_that_others_may_have_written(folder, capsys):
    prediction_and_gradient(small_unet(QUICK))
    folder.chmod(0o777)
    prediction_and_gradient(small_unet(QUICK))
    assert "compiled anew, because others than this user may write there" in capsys.readouterr().out


def test_other_models_shapes_and_threads_have_files_of_their_own(folder, monkeypatch):
    doubled = prediction_and_gradient(small_unet(QUICK))[0]
    torch.testing.assert_close(prediction_and_gradient(small_unet(QUICK, 4.0))[0], 2 * doubled)
    unet = small_unet(QUICK)
    assert prediction_and_gradient(unet, size=8)[0].shape == (2, 4, 8, 8)
    torch.testing.assert_close(prediction_and_gradient(unet)[0], doubled, rtol=0, atol=0)
    assert len(list(folder.glob("unet-*"))) == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    prediction_and_gradient(small_unet(QUICK))
    assert len(list(folder.glob("unet-*"))) == 4


def test_a_model_of_another_folder_has_the_same_file(folder):
    for place in ("here", "there"):
        prediction_and_gradient(small_unet(QUICK, 2.0, place))
    assert len(list(folder.glob("unet-*"))) == 1


def test_it_computes_by_itself_while_it_is_not_trained(folder):
    unet = small_unet(QUICK)
    assert "sample" in unet(*inputs(), return_dict=True)
    with torch.no_grad():
        unet(*inputs(), return_dict=False)
    unet.eval()(*inputs(), return_dict=False)
    assert not list(folder.glob("unet-*"))
