"""How well an encoder that was trained without labels puts like drawings beside each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import Dinov2Model

from stages.measures.statistics import area_under_curve
from stages.mini.drawings.labelled import LABELS, NOT_SHOWN, Labelled
from stages.mini.drawings.pixels import to_tensor


@torch.inference_mode()
def embed(dino: Dinov2Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Embeddings of drawings (N, 64, 64, 3), normalised to length 1, (N, D)."""
    batches = []
    for start in range(0, len(images), 64):
        output: Any = dino(to_tensor(images[start : start + 64]))
        batches.append(F.normalize(output.pooler_output, dim=-1))
    return torch.cat(batches).numpy()


def neighbours_alike(dino: Dinov2Model, drawings: Labelled) -> dict[str, float]:
    """For each label, the share of drawings whose nearest other drawing shows the same, in [0, 1]; higher is better.

    A label that none of the drawings shows is left out.
    """
    embeddings = embed(dino, drawings.images)
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -1)
    nearest = similarity.argmax(axis=1)
    shares = {}
    for name in LABELS:
        own, found = drawings.column(name), drawings.column(name)[nearest]
        shown = own != NOT_SHOWN
        if shown.any():
            shares[name] = round(float((own == found)[shown].mean()), 4)
    return shares


def told_apart(positives: Sequence[float] | NDArray, negatives: Sequence[float] | NDArray) -> float:
    """The chance that a positive has a higher score than a negative (the area under the ROC curve), ties counted half.

    Raises:
        ValueError: there is none of one kind.
    """
    if not (len(positives) and len(negatives)):
        raise ValueError("of one kind there is no drawing: take more of them (--samples)")
    return area_under_curve(positives, negatives).mean
