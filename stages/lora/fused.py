"""A linear layer with its LoRA in three operations, in place of PEFT's seven.

PEFT computes the layer, then the adapter with two more, scales, and adds, and autograd goes back through each of these. On a
small UNet that is a twentieth of a training step. Here the adapter's product is added where the layer's was written: the result
is PEFT's to rounding; the layers, the weights, their names and the file are PEFT's own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional


def fuse_linear_layers(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Have the linear layers of a model that carry a plain LoRA compute it at once while they are trained; in place.

    Args:
        model: what is called while training.
        dtype: of the layers' weights and inputs. Where it is not float32, in which adapters are trained, these are cast all
            at once at each call of the model: two operations, and not two a layer.
    """
    fused = []
    for module in model.modules():
        layer: Any = module
        if type(module) is Linear and _is_plain(layer):
            layer.forward = FusedForward(layer)
            fused.append(layer.forward)
    if fused and dtype != torch.float32:
        model.register_forward_pre_hook(lambda *_: _cast(fused, dtype) if model.training else None)


def _cast(fused: Sequence["FusedForward"], dtype: torch.dtype) -> None:
    weights = [weight for forward in fused for weight in forward.weights]
    together = torch.cat([weight.flatten() for weight in weights]).to(dtype)
    parts = iter(together.split([weight.numel() for weight in weights]))
    for forward in fused:
        lora_a, lora_b = (part.view_as(weight) for weight, part in zip(forward.weights, parts, strict=False))
        forward.cast = (lora_a, lora_b)


def lora_product(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """The layer with its adapter: x W^T + b + s (x A^T) B^T (Hu et al. 2021, section 4.1, arXiv:2106.09685).

    Args:
        x: (..., in).
        weight: (out, in), W.
        bias: (out,), b.
        lora_a: (r, in), A.
        lora_b: (out, r), B.
        scaling: s, alpha / r or alpha / sqrt(r).
    """
    rows = x.reshape(-1, x.shape[-1])
    output = functional.linear(rows, weight, bias)
    # autocast does not cast what is computed in place
    output.addmm_(functional.linear(rows, lora_a), lora_b.t().to(output.dtype), alpha=scaling)
    return output.view(*x.shape[:-1], -1)


class FusedForward:
    """The forward pass of one of PEFT's linear layers, computed at once while it is trained.

    While it is not trained it is PEFT's own, so that it gives the very bits that a pipeline gives that loads the file.

    Args:
        layer: with one adapter, a plain LoRA.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        (self.adapter,) = layer.lora_A
        self.cast: tuple[Tensor, Tensor] | None = None  # the adapter's weights in the dtype of the layer

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """The adapter's, as they are trained: (r, in) and (out, r)."""
        return self.layer.lora_A[self.adapter].weight, self.layer.lora_B[self.adapter].weight

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) to (..., out)."""
        layer, base = self.layer, self.layer.base_layer
        lora_a, lora_b = self.cast or self.weights
        of_one_dtype = x.dtype == base.weight.dtype == lora_a.dtype or torch.is_autocast_enabled(x.device.type)
        in_use = layer.training and not layer.disable_adapters and not layer.merged and layer.active_adapters == [self.adapter]
        if args or kwargs or not (of_one_dtype and in_use):
            return Linear.forward(layer, x, *args, **kwargs)
        return lora_product(x, base.weight, base.bias, lora_a, lora_b, layer.scaling[self.adapter])


def _is_plain(layer: Any) -> bool:
    """Whether a layer has one adapter, which is no DoRA, drops nothing and has no bias."""
    if len(layer.lora_A) != 1:
        return False
    (adapter,) = layer.lora_A
    plain = isinstance(layer.lora_dropout[adapter], nn.Identity) and not layer.lora_bias[adapter]
    return plain and not layer.use_dora[adapter]
