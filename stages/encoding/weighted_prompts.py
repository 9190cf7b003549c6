"""Prompts with weights, of any length, as the UNet attends to them: by the rule of A1111's web UI.

Its numbers are what a prompt that was written for it means: other programs give the same words other weights. They multiply the
text encoder's output, which then gets its mean back; texts are embedded 75 tokens at a time, and cut behind a comma where there
is one among the last 20 (https://github.com/AUTOMATIC1111/stable-diffusion-webui, modules/sd_hijack_clip.py, and
modules/sd_emphasis.py, "Original").
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from stages.encoding.prompt_syntax import Fragment, parse
from stages.encoding.prompts import check_clip_skip, last_layer, spelled

BACK = 20
"""Among how many of the last tokens of a piece a comma is looked for."""


@torch.inference_mode()
def embed_weighted(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompt: str, clip_skip: int) -> Tensor:
    """Embed a prompt in A1111's syntax.

    Args:
        tokenizer: of the model.
        text_encoder: of the model.
        prompt: see `prompt_syntax`.
        clip_skip: layers left out at the end of the text encoder.

    Returns:
        (1, n L, D) float32, on the CPU, n being how many times the text encoder was needed.

    Raises:
        ValueError: the prompt has what is not supported, or as many layers would be left out as there are.
    """
    check_clip_skip(text_encoder, clip_skip)
    embeds = []
    for part in parse(prompt):
        for tokens, weights in _pieces(tokenizer, part):
            output = text_encoder(torch.tensor([tokens], device=text_encoder.device), output_hidden_states=True)
            plain = last_layer(text_encoder, output, clip_skip).float().cpu()
            embeds.append(_weighted(plain, torch.tensor(weights).view(1, -1, 1)))
    return torch.cat(embeds, dim=1)


def _weighted(plain: Tensor, weights: Tensor) -> Tensor:
    """The text encoder's output (1, L, D) with weights (1, L, 1), its mean being what it was."""
    if bool((weights == 1).all()):
        return plain
    changed = plain * weights
    return changed * (plain.mean() / changed.mean())


def _pieces(tokenizer: CLIPTokenizer, part: Sequence[Fragment]) -> Iterator[tuple[list[int], list[float]]]:
    """The tokens of a part with their weights, as often as many as the text encoder takes, begin and end included."""
    named: Any = tokenizer
    begin, end, filler = named.bos_token_id, named.eos_token_id, named.pad_token_id
    room = tokenizer.model_max_length - 2
    tokens, weights = _tokens(tokenizer, part)
    commas = set(tokenizer(",", add_special_tokens=False).input_ids)
    while True:
        length = _cut(tokens, room, commas)
        taken, tokens = tokens[:length], tokens[length:]
        of_taken, weights = weights[:length], weights[length:]
        missing = room - len(taken)
        yield [begin, *taken, end, *[filler] * missing], [1.0, *of_taken, *[1.0] * (missing + 1)]
        if not tokens:
            return


def _tokens(tokenizer: CLIPTokenizer, part: Sequence[Fragment]) -> tuple[list[int], list[float]]:
    texts = spelled(tokenizer, [fragment.text for fragment in part]) if part else []
    ids = tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False).input_ids if texts else []
    weights = [fragment.weight for fragment, of_fragment in zip(part, ids, strict=True) for _ in of_fragment]
    return [token for of_fragment in ids for token in of_fragment], weights


def _cut(tokens: Sequence[int], room: int, commas: set[int]) -> int:
    """How many of the tokens are taken together."""
    if len(tokens) <= room:
        return len(tokens)
    behind = [place + 1 for place in range(room - BACK, room) if tokens[place] in commas]
    return behind[-1] if behind else room


def of_one_length(first: Tensor, second: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    """Two embeddings as long as the longer one: the other is followed by that of the empty prompt.

    Args:
        first: (1, n L, D).
        second: (1, m L, D).
        empty: (1, L, D).
    """
    length = max(first.shape[1], second.shape[1])

    def longer(embeds: Tensor) -> Tensor:
        missing = (length - embeds.shape[1]) // empty.shape[1]
        return torch.cat([embeds, *[empty] * missing], dim=1)

    return longer(first), longer(second)
