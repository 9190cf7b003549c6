"""A UNet trained together with the text encoder that it listens to."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from stages.encoding.prompts import check_clip_skip, last_layer, load_text_encoder, tokenize
from stages.encoding.words import add_word
from stages.lora.run import TrainedPrompts
from stages.lora.token_vectors import train_vectors

VECTORS = "vectors"
"""The name of the parameter of a word that is trained."""
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The text encoder's attention; what diffusers' DreamBooth script trains."""


class UNetWithTextEncoder(nn.Module):
    """Called as a UNet is, with numbers of prompts in place of embeddings; on a CPU each that is asked for is embedded once."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        prompts: TrainedPrompts,
        vectors: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.vectors = vectors  # of a word that is trained, within the text encoder
        self.input_ids: Tensor
        self.register_buffer("input_ids", tokenize(tokenizer, prompts.prompts), persistent=False)
        self.clip_skip = prompts.clip_skip

    def forward(
        self, sample: Tensor, timestep: Tensor, prompt_numbers: Tensor, return_dict: bool = False
    ) -> tuple[Tensor, ...]:
        """The UNet's prediction.

        Args:
            sample: (B, C, h, w).
            timestep: (B,).
            prompt_numbers: (B,), in [0, number of prompts).
            return_dict: must be False, as in all calls here.
        """
        if prompt_numbers.device.type != "cpu":  # a GPU embeds a few more sooner than it says how many there are
            output = self.text_encoder(self.input_ids[prompt_numbers], output_hidden_states=True)
            encoder_hidden_states = last_layer(self.text_encoder, output, self.clip_skip)
            return self.unet(sample, timestep, encoder_hidden_states, return_dict=return_dict)
        asked, places = torch.unique(prompt_numbers, return_inverse=True)
        output = self.text_encoder(self.input_ids[asked], output_hidden_states=True)
        prompt_embeds = last_layer(self.text_encoder, output, self.clip_skip)
        chosen = nn.functional.one_hot(places, len(asked)).to(prompt_embeds.dtype)
        encoder_hidden_states = torch.einsum("bp,pld->bld", chosen, prompt_embeds)
        return self.unet(sample, timestep, encoder_hidden_states, return_dict=return_dict)


def with_text_encoder(unet: UNet2DConditionModel, model: Path, prompts: TrainedPrompts) -> UNetWithTextEncoder:
    """Put the text encoder of a model before its UNet; both frozen, but for the vectors of a word, on the CPU.

    Raises:
        ValueError: as many layers would be left out as the text encoder has, or the word cannot be taught.
    """
    tokenizer, text_encoder = load_text_encoder(model, torch.device("cpu"))
    check_clip_skip(text_encoder, prompts.clip_skip)
    if prompts.word is None:
        return UNetWithTextEncoder(unet, text_encoder, tokenizer, prompts)
    first = len(tokenizer)
    vectors = train_vectors(text_encoder, add_word(tokenizer, prompts.word), first)
    return UNetWithTextEncoder(unet, text_encoder, tokenizer, prompts, vectors)
