"""Embeddings of images by CLIP (Radford et al. 2021, arXiv:2103.00020) and DINOv2 (Oquab et al. 2023, arXiv:2304.07193).

Images are embedded one at a time: the last bits of an embedding depend on those that it is computed with, and an image that was
embedded before shall not be embedded again because others are new.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model
from transformers.utils.logging import disable_progress_bar

from stages.checkpoints.files.tensors import sha256
from stages.drawing.preprocessing import Preprocessing, read_preprocessing
from stages.encoding.data_warnings import say_problems, too_long
from stages.encoding.prompts import token_counts

_PARTS = ("*.safetensors", "*.bin", "*.json", "*.txt")


@dataclass(frozen=True)
class Encoder:
    """A model that embeds images, on one device and in one dtype.

    Attributes:
        model: CLIP or DINOv2.
        preprocessing: what it wants done to images.
        tokenizer: of CLIP; None for DINOv2, which reads no texts.
    """

    model: Any
    preprocessing: Preprocessing
    tokenizer: CLIPTokenizer | None = None


def load_clip(folder: Path, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Load CLIP and what prepares its inputs.

    Args:
        folder: in the transformers layout.
        device: where it computes.
        dtype: of weights and activations.

    Raises:
        OSError: files are missing, or are not those of a CLIP.
    """
    model = _load(CLIPModel, folder, dtype, "CLIP").to(device).eval()
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot load the tokenizer of {folder}: {' '.join(str(error).split())}") from error
    return Encoder(model, read_preprocessing(folder), tokenizer)


def load_dino(folder: Path, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Load DINOv2; arguments and errors are those of `load_clip`."""
    return Encoder(_load(Dinov2Model, folder, dtype, "DINOv2").to(device).eval(), read_preprocessing(folder))


def _load(model_class: Any, folder: Path, dtype: torch.dtype, name: str) -> Any:
    disable_progress_bar()  # loading is a flash
    try:
        loaded: Any = model_class.from_pretrained(folder, dtype=dtype, output_loading_info=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:  # paragraphs
        raise OSError(f"cannot load {name} from {folder}: {' '.join(str(error).split())}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise OSError(f"{folder} is no {name}: it lacks weights ({len(missing)}), first {missing[0]}")
    return model


def encoder_digest(folder: Path) -> str:
    """The sha256 of an encoder: of its weights and of its settings, whatever else lies beside them."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _PARTS for file in folder.glob(pattern)}):
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


@torch.inference_mode()
def embed_image(encoder: Encoder, file: Path) -> Tensor:
    """Embed an image file: (D,) float32 on the CPU, of length 1."""
    with Image.open(file) as image:
        pixel_values = torch.from_numpy(encoder.preprocessing(image))[None]
    pixel_values = pixel_values.to(encoder.model.device, encoder.model.dtype)
    if encoder.tokenizer is None:
        return _unit(encoder.model(pixel_values).pooler_output)
    return _unit(encoder.model.get_image_features(pixel_values).pooler_output)


@torch.inference_mode()
def embed_texts(clip: Encoder, texts: Sequence[str]) -> Tensor:
    """Embed texts by CLIP; a warning names those that it does not read to their end.

    Of a text that is too long, the first tokens are read, and the token that ends a text after them.

    Returns:
        embeddings: (N, D) float32 on the CPU, each of length 1.
    """
    assert clip.tokenizer is not None
    limit = clip.tokenizer.model_max_length
    counts = dict(zip(texts, token_counts(clip.tokenizer, list(texts)), strict=True))
    say_problems(f"{line}: likeness to the prompt is measured without the rest" for line in too_long("prompt", counts, limit))
    embeddings = []
    for text in texts:
        inputs = clip.tokenizer(text, truncation=True, max_length=limit, return_tensors="pt").to(clip.model.device)
        features = clip.model.get_text_features(inputs.input_ids, attention_mask=inputs.attention_mask)
        embeddings.append(_unit(features.pooler_output))
    return torch.stack(embeddings)


def _unit(embedding: Tensor) -> Tensor:
    """The first of a batch, of length 1."""
    return torch.nn.functional.normalize(embedding[0].float(), dim=-1).cpu()
