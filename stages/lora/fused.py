"""A linear layer with its LoRA in three operations, in place of PEFT's seven.

PEFT computes the layer, then the adapter with two more, scales, and adds, and autograd goes back through each of these. On a
small UNet that is a fifth of a training step. Here the adapter's product is added where the layer's was written: the result is
PEFT's to rounding, the weights, their names and the file are PEFT's own.
"""

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional


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


class FusedLinear(Linear):
    """PEFT's linear layer with an adapter, computed at once while training wherever the adapter is a plain LoRA.

    While it is not trained it computes as PEFT does, so that it gives the very bits that a pipeline gives that loads the file.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) to (..., out)."""
        adapter = self._plain_adapter()
        if adapter is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base = cast(nn.Linear, self.base_layer)
        lora_a, lora_b = (cast(nn.Linear, part[adapter]).weight for part in (self.lora_A, self.lora_B))
        if not (x.dtype == base.weight.dtype == lora_a.dtype or torch.is_autocast_enabled(x.device.type)):
            return super().forward(x)
        return lora_product(x, base.weight, base.bias, lora_a, lora_b, self.scaling[adapter])

    def _plain_adapter(self) -> str | None:
        """The name of the only adapter while it is trained, if it is no DoRA, drops nothing and has no bias."""
        if not self.training or self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        adapter = self.active_adapters[0]
        if adapter not in self.lora_A or adapter in self.lora_variant or self.lora_bias[adapter]:
            return None
        return adapter if isinstance(self.lora_dropout[adapter], nn.Identity) else None
