"""From a prompt to what the UNet attends to: the two steps that drawing and training share."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Token numbers, (N, L), each prompt cut or padded to the tokenizer's length."""
    length = tokenizer.model_max_length
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return tokens.input_ids


def last_layer(text_encoder: CLIPTextModel, output: Any, clip_skip: int) -> Tensor:
    """Hidden states of the last layer that is kept, after the final layer norm."""
    if not clip_skip:
        return output.last_hidden_state
    # transformers 5.6 dropped the level `text_model` (huggingface/diffusers#14124).
    layer_norm = getattr(text_encoder, "text_model", text_encoder).final_layer_norm
    return layer_norm(output.hidden_states[-(clip_skip + 1)])
