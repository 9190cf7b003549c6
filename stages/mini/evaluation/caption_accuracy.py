"""How much of what a drawing shows the captioner names rightly."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertTokenizer, BlipForConditionalGeneration

from stages.mini.drawings.caption_attributes import attributes_named
from stages.mini.drawings.pixels import to_tensor


@torch.inference_mode()
def describe(model: BlipForConditionalGeneration, tokenizer: BertTokenizer, images: NDArray[np.uint8]) -> list[str]:
    """A caption for each image (N, 64, 64, 3), by greedy search."""
    captions = []
    for start in range(0, len(images), 64):
        batch = to_tensor(images[start : start + 64]).to(model.device)
        tokens = model.generate(batch, max_new_tokens=tokenizer.model_max_length - 2, do_sample=False)
        captions += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return captions


def named_right(captions: Sequence[str], truths: Sequence[tuple[str, Mapping[str, str]]]) -> dict[str, float]:
    """For each attribute that drawings show, the share of their captions that give it the right word.

    Args:
        captions: one a drawing.
        truths: each drawing's style and attributes.
    """
    right: dict[str, list[bool]] = {}
    for text, (style, attributes) in zip(captions, truths, strict=True):
        named = attributes_named(text)
        for name, word in {"style": style, **attributes}.items():
            right.setdefault(name, []).append(named.get(name) == word)
    return {name: round(sum(hits) / len(hits), 4) for name, hits in right.items()}
