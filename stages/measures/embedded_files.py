"""Files of embeddings: safetensors, the same bytes each time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from stages.pipeline.outputs import atomic_file

METADATA_KEY = "embedded"
"""The only metadata key: safetensors writes several in no fixed order."""
PROMPTS = "prompts"


@dataclass(frozen=True)
class Embedded:
    """Embeddings of the images of a folder, all of length 1.

    Attributes:
        images: by encoder, (N, D) float32.
        texts: of the prompts by CLIP, (P, D) float32.
        file_names: of the N images.
        sha256: of the N files.
        prompts: P texts.
        encoders: the digest of each encoder.
        made_by: digest of all that the embeddings depend on beside the images and the prompts.
    """

    images: Mapping[str, NDArray[np.float32]]
    texts: NDArray[np.float32]
    file_names: Sequence[str]
    sha256: Sequence[str]
    prompts: Sequence[str]
    encoders: Mapping[str, str]
    made_by: str


def write_embedded(embedded: Embedded, path: Path) -> None:
    """Write a file of embeddings.

    Raises:
        ValueError: one of them is not finite, as of a model that is too large for its half precision.
    """
    if problem := _not_finite(embedded):
        raise ValueError(f"{problem}; take float32 (runtime.dtype), or another encoder")
    rest = {name: value for name, value in vars(embedded).items() if name not in ("images", "texts")}
    tensors = {**embedded.images, PROMPTS: embedded.texts}
    with atomic_file(path) as part:
        save_file(
            {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, part, {METADATA_KEY: json.dumps(rest)}
        )


def read_embedded(path: Path) -> Embedded:
    """Read a file of embeddings.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; embed these images first (stage embed)")
    try:
        with safe_open(path, framework="numpy") as file:
            rest = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        texts = tensors.pop(PROMPTS)
        embedded = Embedded(images=tensors, texts=texts, **rest)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a file of embeddings ({error}); run the stage embed again") from error
    if problem := _not_finite(embedded):
        raise ValueError(f"{path}: {problem}; run the stage embed again")
    return embedded


def _not_finite(embedded: Embedded) -> str:
    """Which embedding is not finite; "" if all are."""
    for encoder, rows in embedded.images.items():
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(wrong):
            return f"the embedding of {embedded.file_names[wrong[0]]} by {encoder} is not finite"
    wrong = np.flatnonzero(~np.isfinite(embedded.texts).all(axis=1))
    return f"the embedding of the prompt {embedded.prompts[wrong[0]]!r} is not finite" if len(wrong) else ""


def read_reusable(path: Path, made_by: str) -> dict[tuple[str, str], NDArray[np.float32]]:
    """The embeddings of a file by encoder and sha256 of the image; none where there is none, or it was made otherwise."""
    try:
        embedded = read_embedded(path)
    except (OSError, ValueError):
        return {}
    if embedded.made_by != made_by:
        return {}
    return {
        (encoder, digest): row
        for encoder, rows in embedded.images.items()
        for digest, row in zip(embedded.sha256, rows, strict=True)
    }
