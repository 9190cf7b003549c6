"""The optimiser of the small models: Muon for the matrices and convolutions, AdamW for the rest."""

from typing import Any

import torch
from torch import Tensor, nn


class MuonAdamW:
    """Muon on weights of two or more dimensions, AdamW on embeddings, norms, biases and very thin layers.

    Orthogonal updates (Jordan et al. 2024) get small models further in few steps than AdamW alone; scaled to AdamW's
    size (Liu et al. 2025, arXiv:2502.16982), so one learning rate serves both. `torch.optim.Muon` takes matrices only:
    convolutions are given to it as views of shape (out, in x height x width).
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.matrices = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings and min(_flat(p).shape) >= 16]
        chosen = {id(p) for p in self.matrices}
        self.views = [nn.Parameter(_flat(p.detach())) for p in self.matrices]
        for view, matrix in zip(self.views, self.matrices, strict=True):
            if view.data_ptr() != matrix.data_ptr():
                raise ValueError(f"a weight of shape {tuple(matrix.shape)} is not contiguous in either memory format")
        rest = [p for p in trained if id(p) not in chosen]
        self.muon = torch.optim.Muon(self.views, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(rest, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99))

    def step(self, rate: float) -> None:
        """Update at this learning rate and clear the gradients."""
        for view, matrix in zip(self.views, self.matrices, strict=True):
            view.grad = None if matrix.grad is None else _flat(matrix.grad)
        for optimizer in (self.muon, self.adamw):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for matrix in self.matrices:
            matrix.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state of both optimisers."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def _flat(weight: Tensor) -> Tensor:
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        weight = weight.permute(0, 2, 3, 1)
    return weight.flatten(1)
