"""Tiny UNets with adapters of every kind, and what they predict."""

from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from stages.lora.adapters import add_adapter, trained_parameters
from stages.lora.tuned_model import load_unet
from tests.drawing.tiny_models import WIDTH
from tests.lora.settings import adapter_config

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
MID = "mid_block.attentions.0.transformer_blocks.0"
KINDS = {
    "lora": {},
    "dropout": {"lora_dropout": 0.5},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lokr": {"peft_type": "lokr"},
    "loha": {"peft_type": "loha"},
    "kaiming": {"init_lora_weights": "kaiming"},
    "patterns": {"rank_pattern": {"attn1.to_q": 1, "conv1": 3}, "alpha_pattern": {"attn2.to_k": 3.0, "ff.net.2": 5.0}},
    "overlapping patterns": {
        "rank_pattern": {"to_q": 6, "attn1.to_q": 2, "ff.net.2": 3, "conv1": 1},
        "alpha_pattern": {f"{MID}.attn1.to_q": 64.0, "attn1.to_q": 0.5, "net.2": 3.0, "ff.net.2": 5.0, "v1": 2.0, "conv1": 9.0},
    },
    "lokr overlapping": {"peft_type": "lokr", "rank_pattern": {"to_q": 6, "attn1.to_q": 1, "conv1": 1}},
    "loha overlapping": {"peft_type": "loha", "alpha_pattern": {"attn1.to_q": 6.0, "to_q": 1.0, "ff.net.2": 3.0, "net.2": 1.0}},
    "lokr patterns": {"peft_type": "lokr", "rank_pattern": {"attn1.to_q": 1}, "alpha_pattern": {"attn2.to_k": 3.0}},
    "alpha follows the patterns": {"lora_alpha": "rank", "rank_pattern": {"attn1.to_q": 1}},
}


@torch.no_grad()
def predict(unet):
    generator = torch.Generator().manual_seed(5)
    latents, embeds = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, WIDTH, generator=generator)
    return unet(latents, torch.tensor([3, 700]), embeds, return_dict=False)[0]


def pipeline_of(**parts: Any) -> Any:
    """A pipeline of these parts alone."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    return StableDiffusionPipeline(**dict.fromkeys(names) | parts, requires_safety_checker=False)  # pyright: ignore


def fresh_unet(model, rank=2, targets=TARGETS, seed=0, **settings):
    unet = load_unet(model)
    add_adapter(unet, rank, adapter_config(**settings), targets, seed)
    return unet


def shake(model):
    """Change every trained weight a little, as training does."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained_parameters(model).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def trained_unet(model, rank=2, targets=TARGETS, **settings):
    """A UNet with an adapter that changes what it predicts."""
    changes: dict[str, Any] = {"lora_alpha": 8.0} | settings
    return shake(fresh_unet(model, rank, targets, **changes))
