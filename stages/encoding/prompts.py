"""Prompts and captions as the UNet attends to them: loading the text encoder, tokens, embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar


def load_text_encoder(model: Path, device: torch.device) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Load the tokenizer and the text encoder, in float32, of a model in diffusers layout."""
    disable_progress_bar()  # loading is a flash
    tokenizer = load_tokenizer(model)
    text_encoder: Any = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32, local_files_only=True)
    return tokenizer, text_encoder.to(device).requires_grad_(False).eval()


def load_tokenizer(model: Path) -> CLIPTokenizer:
    """Load the tokenizer alone of a model in diffusers layout."""
    return CLIPTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)


@torch.inference_mode()
def embed_prompts(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: Sequence[str], clip_skip: int, batch_size: int
) -> Tensor:
    """Embed prompts, each cut or padded to the tokenizer's length.

    Args:
        tokenizer: from `load_text_encoder`.
        text_encoder: from `load_text_encoder`.
        prompts: at least one.
        clip_skip: layers left out at the end of the text encoder; its final layer norm is applied in any case.
        batch_size: prompts that are embedded together. The last bits of the result depend on it.

    Returns:
        (N, L, D) float32.

    Raises:
        ValueError: as many layers would be left out as there are.
    """
    check_clip_skip(text_encoder, clip_skip)
    embeds = []
    for start in range(0, len(prompts), batch_size):
        chunk = prompts[start : start + batch_size]
        output = text_encoder(tokenize(tokenizer, chunk).to(text_encoder.device), output_hidden_states=True)
        embeds.append(last_layer(text_encoder, output, clip_skip).cpu())
    return torch.cat(embeds)


def check_clip_skip(text_encoder: CLIPTextModel, clip_skip: int) -> None:
    """Refuse to leave out as many layers as there are.

    Raises:
        ValueError: it names the setting and the number of layers.
    """
    layers = text_encoder.config.num_hidden_layers
    if clip_skip >= layers:
        raise ValueError(f"clip_skip: given {clip_skip}: this text encoder has {layers} layers")


def token_counts(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> list[int]:
    """How many tokens each prompt has, begin and end included, before it is cut."""
    return [len(tokens) for tokens in tokenizer(spelled(tokenizer, prompts), truncation=False, verbose=False).input_ids]


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Token numbers, (N, L), each prompt cut or padded to the tokenizer's length."""
    length = tokenizer.model_max_length
    texts = spelled(tokenizer, prompts)
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens.input_ids


def spelled(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> list[str]:
    """Prompts as the tokenizer is to read them: a word that was added with several vectors is as many tokens."""
    if len(tokenizer) == tokenizer.vocab_size:
        return list(prompts)
    from diffusers.loaders import TextualInversionLoaderMixin

    convert: Any = TextualInversionLoaderMixin().maybe_convert_prompt
    return convert(list(prompts), tokenizer)


def last_layer(text_encoder: CLIPTextModel, output: Any, clip_skip: int) -> Tensor:
    """Hidden states of the last layer that is kept, after the final layer norm."""
    if not clip_skip:
        return output.last_hidden_state
    # transformers 5.6 dropped the level `text_model` (huggingface/diffusers#14124).
    layer_norm = getattr(text_encoder, "text_model", text_encoder).final_layer_norm
    return layer_norm(output.hidden_states[-(clip_skip + 1)])
