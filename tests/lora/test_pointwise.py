from typing import Any

import pytest
import torch
from torch import nn

from stages.lora.adapters import load_unet
from stages.lora.pointwise import PointwiseConv2d, use_matrix_products
from tests.drawing.tiny_models import save_tiny_checkpoint


def make_pair(**settings) -> tuple[Any, Any]:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 4, kernel_size=1, **settings))
    ours = nn.Sequential(nn.Conv2d(6, 4, kernel_size=1, **settings))
    ours.load_state_dict(plain.state_dict())
    use_matrix_products(ours)
    assert type(ours[0]) is PointwiseConv2d
    return plain, ours


def results(model, x):
    x = x.clone().requires_grad_(True)
    output = model(x)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return [output, x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_convolution(memory_format, bias):
    plain, ours = make_pair(bias=bias)
    for model in (plain, ours):
        model.to(memory_format=memory_format)
    x = torch.randn(2, 6, 3, 5).to(memory_format=memory_format)
    for mine, their in zip(results(ours, x), results(plain, x), strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-6)
    assert ours(x).is_contiguous(memory_format=torch.channels_last)


def test_while_it_is_not_trained_it_gives_the_very_bits_of_the_convolution():
    plain, ours = make_pair()
    x = torch.randn(2, 6, 16, 16).to(memory_format=torch.channels_last)
    assert torch.equal(ours.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    "settings",
    [{"kernel_size": 3}, {"kernel_size": 1, "stride": 2}, {"kernel_size": 1, "padding": 1}, {"kernel_size": 1, "groups": 2}],
)
def test_other_convolutions_stay_as_they_are(settings):
    model = nn.Sequential(nn.Conv2d(6, 4, **settings))
    use_matrix_products(model)
    assert type(model[0]) is nn.Conv2d


def test_a_unet_for_training_has_the_weights_and_names_that_it_was_stored_with(tmp_path):
    model = save_tiny_checkpoint(tmp_path / "model")
    unet = load_unet(model)
    assert any(type(module) is PointwiseConv2d for module in unet.modules())
    stored = type(unet).from_pretrained(model / "unet").state_dict()
    assert stored.keys() == unet.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in unet.state_dict().items())
