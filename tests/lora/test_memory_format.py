"""Every kind of adapter on every kind of layer computes as training has it: in training mode, with channels last."""

from typing import Any

import pytest
import torch

from stages.lora.adapters import trained_parameters
from stages.lora.tuned_model import move
from tests.drawing.tiny_models import WIDTH, save_tiny_checkpoint
from tests.lora.tiny_adapters import KINDS, trained_unet

CPU = torch.device("cpu")
LAYERS = {"linear": ["to_q"], "1x1": ["proj_in", "conv_shortcut"], "3x3": ["conv1", "conv_in"]}
CLASSES = {"linear": torch.nn.Linear, "1x1": torch.nn.Conv2d, "3x3": torch.nn.Conv2d}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def gradients(unet: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    latents, embeds = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, WIDTH, generator=generator)
    torch.manual_seed(0)  # of the dropout
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        predicted = unet.train()(latents, torch.tensor([3, 700]), embeds, return_dict=False)[0]
    predicted.float().square().mean().backward()
    found = {name: parameter.grad for name, parameter in trained_parameters(unet).items()}
    assert all(gradient is not None for gradient in found.values())
    return found | {"predicted": predicted.detach()}  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_are_those_of_other_memory(model, kind, layers):
    moved: Any = trained_unet(model, targets=LAYERS[layers], **KINDS[kind])
    move(moved, CPU)
    assert moved.down_blocks[0].downsamplers[0].conv.weight.is_contiguous(memory_format=torch.channels_last)
    found = gradients(moved, torch.float32)
    expected = gradients(trained_unet(model, targets=LAYERS[layers], **KINDS[kind]), torch.float32)
    assert found.keys() == expected.keys()
    assert len(found) > 2
    for name, gradient in found.items():
        if kind == "dropout":  # which values are dropped follows their order in memory
            assert gradient.isfinite().all()
            continue
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "loha"])
def test_half_precision(model, kind, layers):
    unet = trained_unet(model, targets=LAYERS[layers], **KINDS[kind])
    move(unet, CPU)
    assert all(gradient.isfinite().all() for gradient in gradients(unet, torch.bfloat16).values())


def test_the_layers_are_what_they_are_called(model):
    for layers, targets in LAYERS.items():
        unet = trained_unet(model, targets=targets)
        bases: list[Any] = [module.base_layer for module in unet.modules() if hasattr(module, "base_layer")]
        assert bases
        for base in bases:
            assert isinstance(base, CLASSES[layers])
            assert layers == "linear" or "x".join(map(str, base.kernel_size)) == layers
