"""The architecture of Stable Diffusion 1.5, for benchmarks at its size on random weights.

`python benchmarks/sd1.py FOLDER TOKENIZER` writes such a model in diffusers layout, in float16, with a tokenizer from a folder.
"""

import sys
from pathlib import Path
from typing import Any

SD1: dict[str, dict[str, Any]] = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "sample_size": 512,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "model_type": "clip_text_model",
        "hidden_act": "quick_gelu",
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "projection_dim": 768,
    },
}
"""The parts' configs, as far as they differ from the defaults of diffusers and transformers, or say what the part is."""


def write_model(folder: Path, tokenizer: Path) -> None:
    """Write a model of this architecture with random weights, always the same ones.

    Args:
        folder: of the result; made anew.
        tokenizer: a folder with a CLIP tokenizer of at most 49,408 tokens.
    """
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel.from_config(SD1["unet"])
    vae: Any = AutoencoderKL.from_config(SD1["vae"])
    text_encoder: Any = CLIPTextModel(CLIPTextConfig(**SD1["text_encoder"]))
    scheduler: Any = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    checker: Any = None
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        unet=unet.half(),
        scheduler=scheduler,
        safety_checker=checker,
        feature_extractor=checker,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), Path(sys.argv[2]))
