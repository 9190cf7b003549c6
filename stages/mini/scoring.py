"""How well a CLIP tells drawings' own captions from others'."""

from collections import defaultdict
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from stages.mini.captions import changed
from stages.mini.drawings import STYLES, caption
from stages.mini.judge import to_tensor
from stages.mini.labelled import Labelled


def unit_images(clip: CLIPModel, images: Tensor) -> Tensor:
    """Embed images (B, 3, H, W) in [-1, 1] with length 1."""
    output: Any = clip.get_image_features(images)
    return F.normalize(output.pooler_output, dim=-1)


def unit_texts(clip: CLIPModel, tokens: Tensor) -> Tensor:
    """Embed tokens (B, length) with length 1."""
    output: Any = clip.get_text_features(tokens)
    return F.normalize(output.pooler_output, dim=-1)


@torch.inference_mode()
def embed_drawings(clip: CLIPModel, drawings: Labelled) -> Tensor:
    """Image embeddings of length 1, (N, D)."""
    batches = [to_tensor(drawings.images[start : start + 64]).to(clip.device) for start in range(0, len(drawings), 64)]
    return torch.cat([unit_images(clip, batch) for batch in batches])


@torch.inference_mode()
def embed_captions(clip: CLIPModel, tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Caption embeddings of length 1, (N, D)."""
    batches = [list(captions[start : start + 64]) for start in range(0, len(captions), 64)]
    tokens = [tokenizer(batch, padding=True, return_tensors="pt").input_ids.to(clip.device) for batch in batches]
    return torch.cat([unit_texts(clip, batch) for batch in tokens])


def whole_captions(drawings: Labelled) -> list[str]:
    """The whole caption of each drawing."""
    parts = map(drawings.attributes, range(len(drawings)))
    return [caption(STYLES[style].caption, attributes) for style, attributes in parts]


def retrieved(clip: CLIPModel, tokenizer: CLIPTokenizer, drawings: Labelled, among: int = 50, seed: int = 0) -> float:
    """The share of drawings whose own caption is the nearest of `among`, drawn from all styles; the same words count as own."""
    order = list(range(len(drawings)))
    Random(seed).shuffle(order)
    drawings = drawings.subset(order)
    captions = whole_captions(drawings)
    similarity = embed_drawings(clip, drawings) @ embed_captions(clip, tokenizer, captions).T
    hits = total = 0
    among = min(among, len(drawings))
    for start in range(0, len(drawings) - among + 1, among):
        nearest = similarity[start : start + among, start : start + among].argmax(dim=1).tolist()
        hits += sum(captions[start + place] == captions[start + row] for row, place in enumerate(nearest))
        total += among
    return round(hits / total, 4)


def ranked_above_changed(clip: CLIPModel, tokenizer: CLIPTokenizer, drawings: Labelled) -> dict[str, float]:
    """How often the true caption is nearer than one with one attribute changed: for each attribute, and in all."""
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
