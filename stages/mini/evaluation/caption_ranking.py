"""How well a CLIP model matches drawings with their captions."""

from collections import defaultdict
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from stages.mini.drawings.caption_attributes import changed
from stages.mini.drawings.labelled import Labelled
from stages.mini.drawings.pixels import to_tensor
from stages.mini.drawings.portraits import STYLES, caption

GROUP = 50
"""Captions among which a drawing's own has to be found."""


def unit_images(clip: CLIPModel, images: Tensor) -> Tensor:
    """Embeddings of images (B, 3, H, W) in [-1, 1], normalised to length 1, (B, D)."""
    output: Any = clip.get_image_features(images)
    return F.normalize(output.pooler_output, dim=-1)


def unit_texts(clip: CLIPModel, tokens: Tensor) -> Tensor:
    """Embeddings of tokens (B, length), normalised to length 1, (B, D)."""
    output: Any = clip.get_text_features(tokens)
    return F.normalize(output.pooler_output, dim=-1)


@torch.inference_mode()
def embed_drawings(clip: CLIPModel, drawings: Labelled) -> Tensor:
    """Embeddings of drawings, normalised to length 1, (N, D)."""
    batches = [to_tensor(drawings.images[start : start + 64]).to(clip.device) for start in range(0, len(drawings), 64)]
    return torch.cat([unit_images(clip, batch) for batch in batches])


@torch.inference_mode()
def embed_captions(clip: CLIPModel, tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Embeddings of captions, normalised to length 1, (N, D)."""
    batches = [list(captions[start : start + 64]) for start in range(0, len(captions), 64)]
    tokens = [tokenizer(batch, padding=True, return_tensors="pt").input_ids.to(clip.device) for batch in batches]
    return torch.cat([unit_texts(clip, batch) for batch in tokens])


def whole_captions(drawings: Labelled) -> list[str]:
    """For each drawing, the caption that names its style and all its attributes."""
    parts = map(drawings.attributes, range(len(drawings)))
    return [caption(STYLES[style].caption, attributes) for style, attributes in parts]


def retrieved(clip: CLIPModel, tokenizer: CLIPTokenizer, drawings: Labelled) -> float:
    """The top-1 accuracy of retrieving a drawing's caption from GROUP captions, in [0, 1]; higher is better.

    The drawings are shuffled (with a fixed seed) and split into groups of GROUP, all styles together; drawings that fill no
    group are left out. For each drawing, the caption of its group with the highest cosine similarity is retrieved. That is
    right if it reads like the drawing's own caption: two drawings of a group can have the same caption.
    """
    order = list(range(len(drawings)))
    Random(0).shuffle(order)
    drawings = drawings.subset(order)
    captions = whole_captions(drawings)
    similarity = embed_drawings(clip, drawings) @ embed_captions(clip, tokenizer, captions).T
    hits = total = 0
    size = min(GROUP, len(drawings))
    for start in range(0, len(drawings) - size + 1, size):
        nearest = similarity[start : start + size, start : start + size].argmax(dim=1).tolist()
        hits += sum(captions[start + place] == captions[start + row] for row, place in enumerate(nearest))
        total += size
    return round(hits / total, 4)


def ranked_above_changed(clip: CLIPModel, tokenizer: CLIPTokenizer, drawings: Labelled) -> dict[str, float]:
    """How often a drawing is more similar to its own caption than to the same caption with one attribute's word changed.

    Returns:
        For each attribute, the share of drawings for which its own caption won over the one with that attribute changed;
        under "all", the share of all these comparisons. 0.5 is chance, higher is better.
    """
    images = embed_drawings(clip, drawings)
    rows, names, wrong = [], [], []
    for index in range(len(drawings)):
        style, attributes = drawings.attributes(index)
        for name in attributes:
            rows.append(index)
            names.append(name)
            wrong.append(caption(STYLES[style].caption, changed(style, attributes, Random(f"{index}/{name}"), [name])))
    true = embed_captions(clip, tokenizer, whole_captions(drawings))
    above = ((images * true).sum(1)[rows] > (images[rows] * embed_captions(clip, tokenizer, wrong)).sum(1)).tolist()
    shares: dict[str, list[bool]] = defaultdict(list)
    for name, better in zip(names, above, strict=True):
        shares[name].append(better)
        shares["all"].append(better)
    return {name: round(sum(better) / len(better), 4) for name, better in shares.items()}
