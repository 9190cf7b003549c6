"""A text encoder's table with rows behind it that are trained; all others stay what they were, to the bit."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel


class TokenVectors(nn.Module):
    """In the place of a text encoder's token embedding.

    Args:
        table: the token embedding, frozen.
        vectors: (n, D) float32, what the trained rows begin as.
        first: the number of the token that the first of them is for; the others follow.
    """

    def __init__(self, table: nn.Embedding, vectors: Tensor, first: int) -> None:
        super().__init__()
        self.table = table
        self.vectors = nn.Parameter(vectors)
        self.first = first

    def forward(self, input_ids: Tensor) -> Tensor:
        """(N, L) numbers of tokens to (N, L, D)."""
        frozen = self.table(input_ids.clamp(max=self.first - 1))
        # A product, because its gradient is added up in the same order each time; each row takes part in it once, and zeros.
        chosen = (input_ids[..., None] - self.first == torch.arange(len(self.vectors), device=input_ids.device)).to(
            frozen.dtype
        )
        return torch.where((input_ids >= self.first)[..., None], chosen @ self.vectors.to(frozen.dtype), frozen)


def train_vectors(text_encoder: CLIPTextModel, begin_as: Sequence[int], first: int) -> nn.Parameter:
    """Have a text encoder read trained vectors for new tokens; in place.

    Args:
        text_encoder: frozen.
        begin_as: the tokens whose vectors they begin as.
        first: the number of the first new token.
    """
    table: Any = text_encoder.get_input_embeddings()
    embedding = TokenVectors(table, table.weight[list(begin_as)].detach().clone(), first)
    text_encoder.set_input_embeddings(embedding)
    return embedding.vectors
