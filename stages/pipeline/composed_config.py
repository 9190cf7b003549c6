"""The sections of params.yaml that conf/ computes of the others, for dvc.yaml: no stage reads them, and `sync` checks them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from stages.pipeline.config import Alpha, strict

FINGERPRINTS = Path("data/code")
"""Where `sync` writes the fingerprints of the stages' code: what a stage depends on in place of an input that it has not."""


def _is_watched(path: Path) -> Path:
    if path.parent != FINGERPRINTS and not path.exists():
        raise ValueError(f"no such file or directory: {path}")
    return path


Watched = Annotated[Path, AfterValidator(_is_watched)]
"""What DVC watches: a file or folder that is there, or a fingerprint that `sync` is about to write."""


@dataclass(frozen=True, config=strict)
class VariantCell:
    """What dvc.yaml takes of a variant: the folders of its model and of its LoRA (or of the model again), and LoRA options."""

    model: Path
    trained: Path
    lora: dict[Literal["lora", "lora-scale", "embedding"], str | float]


@dataclass(frozen=True, config=strict)
class ExportCell:
    """What dvc.yaml takes of an export: the folder that is exported, and the setting of `export` that it depends on."""

    source: Path
    setting: Literal["export.dtype", "export.lora_dtype"]


@dataclass(frozen=True, config=strict)
class CellsConfig:
    """The sweep as dvc.yaml's stages take it; the values are those of `SweepConfig`, which is checked."""

    alpha: tuple[Alpha, ...]
    rank: tuple[int, ...]
    dreambooth_rank: tuple[int, ...]
    vectors: tuple[int, ...]
    seed: tuple[int, ...]
    variants: dict[str, VariantCell]
    embedded: dict[str, Path]
    exports: dict[str, ExportCell]


@dataclass(frozen=True, config=strict)
class OriginalInputs:
    """The local files and folders that an original is read from; the fingerprint of `base` stands for none."""

    config: Watched
    source: Watched
    neighbour: Watched


@dataclass(frozen=True, config=strict)
class InputsConfig:
    """The local files and folders that DVC watches; the fingerprint of the stage that would read them stands for none."""

    images: Watched
    masks: Watched
    captioner: Watched
    base: dict[Literal["theta0", "theta1", "theta2"], OriginalInputs]
    vae: Watched
    described: Path  # made by another stage, or the fingerprint
    clip: Watched
    dino: Watched
