"""Settings of this room that hardly restrict or change anything; tests say what they change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.dataset.config import CaptionEditsConfig, CaptioningConfig, CollectionConfig, FolderSource

_COLLECTION = CollectionConfig(
    on_bad="fail", min_size=8, max_pixels=10_000, min_images=1, max_images=None, alpha_mask=False, held_out_images=0
)
_CAPTIONING = CaptioningConfig(prompt=None, num_beams=1, max_new_tokens=6, batch_size=2)
_EDITS = CaptionEditsConfig(prefix=None, prefixes={}, drop_phrases=(), drop_common_phrases=None, suffix=None)


def collection(**changed: Any) -> CollectionConfig:
    return replace(_COLLECTION, **changed)


def captioning(**changed: Any) -> CaptioningConfig:
    return replace(_CAPTIONING, **changed)


def edits(**changed: Any) -> CaptionEditsConfig:
    return replace(_EDITS, **changed)


def folder_source(path: Path, masks: Path | None = None) -> FolderSource:
    return FolderSource(kind="folder", path=path, masks=masks)
