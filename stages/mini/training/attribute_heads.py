"""Linear heads that captioner and scorer have while they are trained, so that their image towers learn every attribute."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.mini.drawings.labelled import LABELS, NOT_SHOWN


def attribute_heads(width: int) -> nn.ModuleDict:
    """One linear classifier for each label, on features of that width."""
    return nn.ModuleDict({name: nn.Linear(width, len(words)) for name, words in LABELS.items()})


def heads_loss(heads: nn.ModuleDict, features: Tensor, labels: Tensor) -> Tensor:
    """The mean of the heads' cross-entropies; drawings that do not show a label's attribute do not count for its head.

    Args:
        heads: those of `attribute_heads`.
        features: (B, width).
        labels: (B, len(LABELS)), NOT_SHOWN where the drawing does not show the attribute.
    """
    total = torch.zeros((), device=features.device)
    for column, head in enumerate(heads.values()):
        if (labels[:, column] != NOT_SHOWN).any():
            total = total + F.cross_entropy(head(features), labels[:, column], ignore_index=NOT_SHOWN)
    return total / len(heads)
