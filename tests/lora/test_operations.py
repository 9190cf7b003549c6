"""How many operations a training step launches, at the structure of Stable Diffusion 1.5, against the bare UNet."""

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.sd1 import SD1
from stages.lora.adapters import add_adapter
from stages.lora.batches import Batch
from stages.lora.fused import fuse_linear_layers
from stages.lora.losses import denoising_loss
from stages.lora.tuned_model import cast_frozen
from tests.lora.settings import adapter_config, loss_config

WIDTH = 64
NARROW = {"block_out_channels": [32, 64, 128, 128], "cross_attention_dim": WIDTH, "sample_size": 8}
VIEWS = {"alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "split_with_sizes", "squeeze"}
VIEWS |= {"t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"}
"""Operations that launch nothing."""
DTYPE = torch.bfloat16


class Launches(TorchDispatchMode):
    """Counts operations, and the casts of some weights."""

    def __init__(self, frozen: list[torch.Tensor]) -> None:
        super().__init__()
        self.places = {tensor.data_ptr() for tensor in frozen}
        self.counts: Counter[str] = Counter()
        self.casts_of_frozen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] += name not in VIEWS
        self.casts_of_frozen += name == "_to_copy" and args[0].data_ptr() in self.places
        return func(*args, **(kwargs or {}))


def make_unet() -> Any:
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel.from_config(SD1["unet"] | NARROW)
    unet.requires_grad_(False)
    config = adapter_config()
    add_adapter(unet, 4, config, config.target_modules, seed=0)
    return unet.train()


def make_batch() -> Batch:
    latents, noise = torch.randn(2, 2, 4, 8, 8).unbind()
    return Batch(latents, noise, torch.tensor([3, 700]), torch.randn(2, 77, WIDTH), torch.full((2,), 0.5))


@cache
def bare() -> Launches:
    """The UNet with PEFT's LoRA, all of it in the dtype of the computation, forward and backward."""
    unet, batch = make_unet().to(DTYPE), make_batch()
    with Launches([]) as launches:
        prediction = unet(batch.latents.to(DTYPE), batch.timesteps, batch.encoder_hidden_states.to(DTYPE), return_dict=False)[0]
        (prediction.float() - batch.noise).square().mean().backward()
    return launches


@cache
def ours() -> Launches:
    """A training step's gradients, the LoRA in float32."""
    unet, batch = make_unet(), make_batch()
    cast_frozen(unet, DTYPE)
    fuse_linear_layers(unet, DTYPE)
    frozen = [parameter for parameter in unet.parameters() if not parameter.requires_grad]
    with Launches(frozen) as launches:
        denoising_loss(unet, batch, DDPMScheduler(), loss_config(), DTYPE).backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in unet.parameters() if parameter.requires_grad)
    return launches


def test_a_step_launches_hardly_more_than_the_bare_unet():
    assert ours().counts.total() <= 1.1 * bare().counts.total()


def test_frozen_weights_are_cast_before_the_training_and_never_in_it():
    assert ours().casts_of_frozen == 0
    frozen = torch.zeros(2)
    with Launches([frozen]) as launches:
        frozen.to(DTYPE)
    assert launches.casts_of_frozen == 1


def test_the_weights_of_the_lora_are_cast_together():
    """And the noisy latents, the prompts and the prediction, each once."""
    assert ours().counts["_to_copy"] - bare().counts["_to_copy"] <= 4
    layers = ours().counts["addmm_"]
    assert layers == 128
    assert ours().counts["_to_copy"] < layers / 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_and_gradients_are_those_of_float32_to_rounding(dtype):
    results = []
    for each in (torch.float32, dtype):
        unet = make_unet()
        numbers = torch.Generator().manual_seed(1)
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.1, generator=numbers)
        cast_frozen(unet, each)
        fuse_linear_layers(unet, each)
        torch.manual_seed(2)
        loss = denoising_loss(unet, make_batch(), DDPMScheduler(), loss_config(), each)
        loss.backward()
        gradients = [parameter.grad for parameter in unet.parameters() if parameter.requires_grad]
        results.append((loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
    (exact, exact_gradient), (loss, gradient) = results
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    assert torch.nn.functional.cosine_similarity(gradient, exact_gradient, dim=0) > 0.98
