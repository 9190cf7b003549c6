"""Read a checkpoint in any supported form and write it in the diffusers layout.

Reads one of the two originals, theta0 or theta1: a single file in the LDM layout (.safetensors, or .ckpt, of which nothing
is executed) or a diffusers directory, on this machine or at a pinned commit of the hub. Checks every key, shape and value
against the model's config. Writes model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/ with safetensors
weights; the metadata of each weights file say what it was made of. Without a theta1, writes an empty directory for it.

It is a stage of its own because reading and checking foreign files is needed once a checkpoint, not once a merge.
"""

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import Source, strict
from stages.pipeline.outputs import atomic_directory


@dataclass(frozen=True, config=strict)
class CheckpointConfig:
    """One original.

    Attributes:
        source: The checkpoint.
        config: Diffusers directory with the configs, scheduler and tokenizer that belong to a single file; null for a
            source that is a diffusers directory itself. Its weights are not read.
    """

    source: Source
    config: Source | None


@dataclass(frozen=True, config=strict)
class BaseConfig:
    """The originals.

    Attributes:
        theta0: The first model.
        theta1: The second; null for an experiment without a merge.
        dtype: Of the weights written. float32 holds every source exactly.
    """

    theta0: CheckpointConfig
    theta1: CheckpointConfig | None
    dtype: Literal["float16", "float32"]


def stage(config: BaseConfig, name: str, out: Path) -> None:
    """Write the original called `name`, theta0 or theta1, to the directory `out`."""
    if name not in ("theta0", "theta1"):
        raise ValueError(f"--name: given {name!r}: theta0 or theta1")
    checkpoint: CheckpointConfig | None = getattr(config, name)
    with atomic_directory(out) as folder:
        if checkpoint is None:
            return
        from stages.checkpoints.model import read_model, write_model
        from stages.checkpoints.sources import locate

        try:
            configs = checkpoint.config and locate(checkpoint.config, weights=False)
            model = read_model(locate(checkpoint.source), configs)
            write_model(folder, model.from_source(checkpoint.source.name), config.dtype)
        except (ValueError, OSError) as error:
            raise ValueError(f"base.{name}: {error}") from error


if __name__ == "__main__":
    run(stage)
