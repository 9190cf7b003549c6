from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import nn

from stages.lora import fused
from stages.lora.adapters import add_adapter, trained_parameters
from stages.lora.fused import FusedForward, fuse_linear_layers, lora_product
from stages.lora.tuned_model import load_unet
from tests.drawing.tiny_models import WIDTH, save_tiny_checkpoint
from tests.lora.settings import adapter_config

SHAPES = [(3, 6), (2, 5, 6), (2, 1, 3, 6)]


def make_layer(fuses, bias=True, **settings) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=bias))
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0"], init_lora_weights=False, **settings)
    inject_adapter_in_model(config, model)
    if fuses:
        fuse_linear_layers(model)
    layer: Any = model[0]
    assert type(layer) is Linear
    return layer


def results(layer, x, dtype=None):
    """The output and the gradients of input and adapter of a scalar that weighs each output differently."""
    x = x.clone().requires_grad_(True)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        output = layer(x)
    loss = (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
    loss.backward()
    return [output, x.grad, layer.lora_A.default.weight.grad, layer.lora_B.default.weight.grad]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_peft(shape, bias):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (results(make_layer(fuses, bias), x) for fuses in (True, False))
    for mine, their in zip(ours, theirs, strict=True):
        assert mine.shape == their.shape
        assert mine.dtype == their.dtype
        torch.testing.assert_close(mine, their, rtol=1e-6, atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5), (4, 5), (4,), (2, 5), (4, 2)]
    x, weight, bias, lora_a, lora_b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    for tensor in (x, lora_a, lora_b):
        tensor.requires_grad_(True)

    def product(x, lora_a, lora_b):
        return lora_product(x, weight, bias, lora_a, lora_b, 1.5)

    assert torch.autograd.gradcheck(product, (x, lora_a, lora_b))


@pytest.mark.parametrize("frozen", [torch.float32, torch.bfloat16])
def test_mixed_precision_gives_peft_s_dtypes_and_is_off_by_rounding(frozen):
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    exact = results(make_layer(False), x)
    ours, theirs = make_layer(True), make_layer(False)
    for layer in (ours, theirs):
        layer.base_layer.to(frozen)
    mine, their = results(ours, x, torch.bfloat16), results(theirs, x, torch.bfloat16)
    for value, other, truth in zip(mine, their, exact, strict=True):
        assert value.dtype == other.dtype
        assert (value - truth).norm() < torch.finfo(torch.bfloat16).eps * truth.norm()


@pytest.mark.parametrize("change", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}])
def test_what_is_no_plain_lora_is_left_to_peft(change):
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    with patch.object(fused, "lora_product", None):  # any use of it raises
        torch.manual_seed(5)
        ours = results(make_layer(True, **change), x)
    theirs = results(make_layer(False, **change), x)
    for mine, their in zip(ours, theirs, strict=True):
        assert torch.equal(mine, their)


def test_a_layer_that_is_not_trained_is_left_to_peft():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    with patch.object(fused, "lora_product", None):
        assert torch.equal(make_layer(True).eval()(x), make_layer(False).eval()(x))


def test_an_adapter_that_is_off_or_merged_is_left_to_peft():
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    layer = make_layer(True)
    adapted = layer(x)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))
    layer.enable_adapters(True)
    layer.merge()
    torch.testing.assert_close(layer(x), adapted)


def test_a_base_weight_that_is_trained_keeps_its_gradient():
    layer = make_layer(True)
    layer.base_layer.weight.requires_grad_(True)
    layer(torch.ones(1, 6)).sum().backward()
    assert layer.base_layer.weight.grad is not None


def test_a_unet_with_fused_layers_has_peft_s_loss_and_gradients(tmp_path):
    model = save_tiny_checkpoint(tmp_path)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    prompts = torch.randn(2, 77, WIDTH, generator=generator)
    gradients = []
    for fuses in (False, True):
        unet: Any = load_unet(model)
        config = adapter_config()
        add_adapter(unet, 2, config, [*config.target_modules, "ff.net.2", "conv1"], seed=0)
        if fuses:
            fuse_linear_layers(unet)
            fused_layers = [layer for layer in unet.modules() if isinstance(layer.forward, FusedForward)]
            assert len(fused_layers) == sum(type(layer) is Linear for layer in unet.modules()) > 0
        unet.train()
        numbers = torch.Generator().manual_seed(1)
        for parameter in trained_parameters(unet).values():
            parameter.data.normal_(std=0.1, generator=numbers)  # the second matrices are 0 at first
        unet(latents, torch.tensor([3, 900]), prompts, return_dict=False)[0].square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in trained_parameters(unet).items()})
    theirs, ours = gradients
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-7)
