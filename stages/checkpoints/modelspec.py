"""Stability's ModelSpec: the metadata by which programs and model sites know what a safetensors file is.

https://github.com/Stability-AI/ModelSpec, version 1.0.0. The date is left out: the same inputs give the same bytes.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

HASH = {"modelspec.hash_sha256": "0x"}
"""The metadata that holds the sha256 of the tensors, with what stands before it."""
ARCHITECTURES = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2"}
"""By the width of the text's embeddings, `cross_attention_dim`; other widths are of no architecture that has a name there."""
THUMBNAIL_SIZE, QUALITY = 256, 85


def modelspec(
    title: str, width: int | None, kind: str = "", thumbnail: Path | None = None, **more: object
) -> Mapping[str, str]:
    """The metadata of a file.

    Args:
        title: what it is called.
        width: of the text's embeddings, by which the architecture is known.
        kind: "lora" of an adapter; "" of a whole model.
        thumbnail: an image that it drew.
        more: other entries, such as `resolution`; those that are None or empty are left out.
    """
    architecture = ARCHITECTURES.get(width or 0)
    entries = {
        "sai_model_spec": "1.0.0",
        "title": title,
        "architecture": architecture and "/".join(filter(None, (architecture, kind))),
        "implementation": "https://github.com/huggingface/diffusers",
        "thumbnail": thumbnail and data_url(thumbnail),
        **more,
    }
    return {f"modelspec.{name}": str(value) for name, value in entries.items() if value not in (None, "")}


def data_url(image: Path) -> str:
    """An image as a JPEG of at most `THUMBNAIL_SIZE` pixels a side, in a data URL."""
    with Image.open(image) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
