"""A random BLIP of the real class, small enough to caption an image in milliseconds."""

from pathlib import Path

import torch
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "drawing", "of", "red", "hair", "smile", ",", "-"]


def save_tiny_blip(folder: Path) -> Path:
    """Save a random captioner for images of 16 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **width,
        "vocab_size": len(WORDS),
        "encoder_hidden_size": 16,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "bos_token_id": 5,
        "is_decoder": True,
        "initializer_range": 1.0,
    }
    vision = {**width, "image_size": 16, "patch_size": 8, "initializer_range": 1.0}
    torch.manual_seed(0)
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}, bos_token="[DEC]")
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder
