"""A UNet trained together with the text encoder that it listens to."""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from stages.encoding.prompts import check_clip_skip, last_layer, load_text_encoder, tokenize
from stages.lora.run import TrainedPrompts

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The text encoder's attention; what diffusers' DreamBooth script trains."""


class UNetWithTextEncoder(nn.Module):
    """Called as a UNet is, with numbers of prompts in place of embeddings; on a CPU each that is asked for is embedded once."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, input_ids: Tensor, clip_skip: int) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.input_ids: Tensor
        self.register_buffer("input_ids", input_ids, persistent=False)
        self.clip_skip = clip_skip

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
    """Put the text encoder of a model before its UNet; both frozen, on the CPU.

    Raises:
        ValueError: as many layers would be left out as the text encoder has.
    """
    tokenizer, text_encoder = load_text_encoder(model, torch.device("cpu"))
    check_clip_skip(text_encoder, prompts.clip_skip)
    input_ids: Any = tokenize(tokenizer, prompts.prompts)
    return UNetWithTextEncoder(unet, text_encoder, input_ids, prompts.clip_skip)
