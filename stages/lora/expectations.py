"""What a training is expected to take, before it starts: time and memory."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from stages.lora.fused import FusedLinear
from stages.lora.pointwise import PointwiseConv2d

PROMPT_TOKENS = 77
WORKING_MEMORY = 0.2
"""What single operations need besides, as a share of all else: 0.11 in the mini world, 0.14 to 0.17 at SD 1.5's size."""


@dataclass(frozen=True)
class Expectation:
    """How fast a kind of device is.

    Attributes:
        flops: that the steps of a training reach in a second.
        saved: seconds that compiling saves in a pass, for each matrix of weights.
        cost: seconds of compiling, the first time, for each matrix of weights.
    """

    flops: float
    saved: float
    cost: float


EXPECTED = {
    "cpu": Expectation(flops=30e9, saved=0.00016, cost=0.7),
    "cuda": Expectation(flops=40e12, saved=0.00005, cost=0.17),
}
"""Of two CPU cores as `benchmarks/train.py` measures them; of a GPU by estimate.

What compiling saves lies between the products of matrices, so it grows with their number, not with the work in them: 40 of
174 ms in the mini world, 0.4 of 14.6 s at Stable Diffusion 1.5's size.
"""


def expected_seconds(unet: Any, latents: torch.Size, passes: int, device: torch.device) -> float:
    """How long forward and backward passes take that are not compiled, by estimate.

    A backward pass through frozen weights takes as long as the forward pass, and twice as long where they are trained.

    Args:
        unet: ready for training.
        latents: (B, C, h, w), of a batch.
        passes: of the whole run.
        device: of a kind in `EXPECTED`.
    """
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in unet.parameters())
    return passes * (2 + trained / total) * forward_flops(unet, latents) / EXPECTED[device.type].flops


def forward_flops(unet: Any, latents: torch.Size) -> float:
    """Floating-point operations of a forward pass, those of its matrices: every weight meets every place of its level once."""
    count, height, width = latents[0], *latents[-2:]
    lowest = len(unet.config["block_out_channels"]) - 1
    return sum(
        2 * parameter.numel() * count * math.ceil(height / 2**level) * math.ceil(width / 2**level)
        for name, parameter in unet.named_parameters()
        if parameter.ndim > 1 and (level := _level(name, lowest)) is not None
    )


def _level(name: str, lowest: int) -> int | None:
    """How often the latents were halved where the weight is; None for a weight that sees no places."""
    part, _, rest = name.partition(".")
    if part == "time_embedding" or "time_emb_proj" in name:
        return None
    if part == "mid_block":
        return lowest
    if part not in ("down_blocks", "up_blocks"):
        return 0
    number = int(rest.partition(".")[0])
    return number if part == "down_blocks" else lowest - number


def kept_bytes(unet: Any, latents: torch.Size, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes that a forward pass keeps for the backward one: found by running it, without dropout, on tensors without values.

    Args:
        unet: ready for training, on its device.
        latents: (B, C, h, w), of a batch.
        device: where the UNet is.
        dtype: of the computation; other than float32, it is autocast.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to import

    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    unet.eval()  # while training, PEFT's LoKr and LoHa ask for a random value
    for module in unet.modules():
        if isinstance(module, FusedLinear | PointwiseConv2d):  # these keep less while they are trained
            module.training = True
    with FakeTensorMode() as mode, torch.compiler.set_stance("force_eager"):
        state: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in unet.state_dict(keep_vars=True).items()}
        own = {tensor.untyped_storage()._cdata for tensor in state.values()}
        count, width = latents[0], unet.config["cross_attention_dim"]
        inputs = (
            torch.empty(latents, device=device),
            torch.empty(count, dtype=torch.int64, device=device),
            torch.empty(count, PROMPT_TOKENS, width, device=device),
        )
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        ):
            functional_call(unet, state, inputs, {"return_dict": False})
    return sum(storage.nbytes() for number, storage in kept.items() if number not in own)
