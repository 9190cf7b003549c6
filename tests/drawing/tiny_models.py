"""Random models of the real classes, small enough to draw an image in milliseconds."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz,"
VOCABULARY = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]


def tiny_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(VOCABULARY)}, merges=[], model_max_length=77)


def save_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Save a random checkpoint in diffusers layout: 4 latent channels, 4 pixels of image a pixel of latents."""
    torch.manual_seed(seed)
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    make_vae: Any = AutoencoderKL
    make_vae(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=32,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(tiny_text_config()).save_pretrained(folder / "text_encoder")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    return folder


def tiny_text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=len(VOCABULARY) - 2,
        eos_token_id=len(VOCABULARY) - 1,
        pad_token_id=len(VOCABULARY) - 1,
    )


def save_tiny_scorer(folder: Path) -> Path:
    """Save a random CLIP for images of 32 pixels."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=8,
    )
    CLIPModel(
        CLIPConfig(text_config=tiny_text_config().to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    ).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_tiny_dino(folder: Path) -> Path:
    """Save a random DINOv2 for images of 28 pixels, the middle of 32."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=WIDTH, mlp_ratio=2, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder
