"""A linear layer with its LoRA as one operation, in place of PEFT's seven.

PEFT computes the layer, then the adapter with two more, scales, and adds, and autograd goes back through each of these by
itself. On a small UNet that is a fifth of a training step. Here the adapter's product is added where the layer's is written,
forward and backward, and nothing is kept that is not needed: the result is PEFT's to rounding, the weights, their names and
the file are PEFT's own.
"""

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


class LoraProduct(torch.autograd.Function):
    """x W^T + b + s (x A^T) B^T (Hu et al. 2021, section 4.1, arXiv:2106.09685), with W and b frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        """The layer's output.

        Args:
            ctx: for the backward pass.
            x: (..., in).
            weight: (out, in), W.
            bias: (out,), b.
            lora_a: (r, in), A.
            lora_b: (out, r), B.
            scaling: s, alpha / r or alpha / sqrt(r).
        """
        rows = x.reshape(-1, x.shape[-1])
        hidden = rows @ lora_a.t()
        output = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        output = output.addmm_(hidden, lora_b.t(), alpha=scaling)
        ctx.save_for_backward(rows, hidden, weight, lora_a, lora_b)
        ctx.scaling = scaling
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, A and B."""
        rows, hidden, weight, lora_a, lora_b = ctx.saved_tensors
        (grad_output,) = grad_outputs
        grad_rows = grad_output.reshape(-1, grad_output.shape[-1])
        grad_hidden = (grad_rows @ lora_b).mul_(ctx.scaling)
        grad_a = grad_hidden.t() @ rows
        grad_b = (hidden.t() @ grad_rows).t().mul(ctx.scaling)  # a narrow left factor is faster than a narrow right one
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_rows @ weight).addmm_(grad_hidden, lora_a).view(*grad_output.shape[:-1], -1)
        return grad_x, None, None, grad_a, grad_b, None


class FusedLinear(Linear):
    """PEFT's linear layer with an adapter, computed at once while training wherever the adapter is a plain LoRA.

    While it is not trained it computes as PEFT does, so that it gives the very bits that a pipeline gives that loads the file.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) to (..., out)."""
        adapter, base = self._plain_adapter(), cast(nn.Linear, self.base_layer)
        if adapter is None or args or kwargs or base.weight.requires_grad:
            return super().forward(x, *args, **kwargs)
        lora_a, lora_b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        tensors = [x, base.weight, base.bias, lora_a, lora_b]
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            tensors = [tensor if tensor is None else tensor.to(dtype) for tensor in tensors]
        elif x.dtype != base.weight.dtype or x.dtype != lora_a.dtype:
            return super().forward(x)
        return LoraProduct.apply(*tensors, self.scaling[adapter])  # pyright: ignore[reportReturnType]

    def _plain_adapter(self) -> str | None:
        """The name of the only adapter while it is trained, if it is no DoRA, drops nothing and has no bias."""
        if not self.training or self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        adapter = self.active_adapters[0]
        if adapter not in self.lora_A or adapter in self.lora_variant or self.lora_bias[adapter]:
            return None
        return adapter if isinstance(self.lora_dropout[adapter], nn.Identity) else None
