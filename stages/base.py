"""Read a checkpoint in any supported form and write it in the diffusers layout.

Reads one of the originals, theta0, theta1 or theta2: a single file in the LDM layout (.safetensors, or .ckpt, of which nothing
is executed) or a diffusers directory, on this machine or at a pinned commit of the hub. Checks every key, shape and value
against the model's config. Writes model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/ with safetensors
weights; the metadata of each weights file say what it was made of. Of a VAE or a text encoder that the checkpoint lacks, or
that is not finite, it says so and writes the config alone: the experiment may take another's. Without a theta1, the directory
holds a note that says so.

It is a stage of its own because reading and checking foreign files is needed once a checkpoint, not once a merge.
"""

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from stages.checkpoints.reading_config import ReadingConfig
from stages.pipeline.command import run
from stages.pipeline.config import Source, strict
from stages.pipeline.outputs import atomic_directory, write_nothing


@dataclass(frozen=True, config=strict)
class CheckpointConfig(ReadingConfig):
    """One original, and how it is read.

    Attributes:
        source: The checkpoint.
        config: Diffusers directory with the configs, scheduler and tokenizer that belong to a single file; not read for a
            source that is a diffusers directory itself, unless `fill` asks for its weights.
    """

    source: Source
    config: Source | None

    def __post_init__(self) -> None:
        """Check that there is something to fill from."""
        if self.fill and self.config is None:
            raise ValueError("fill: true takes what the source lacks from config, which is null: name a diffusers directory")


@dataclass(frozen=True, config=strict)
class BaseConfig:
    """The originals.

    Attributes:
        theta0: The first model.
        theta1: The second; null for an experiment without a merge.
        theta2: The third, which some methods measure differences from; null for the others.
        dtype: Of the weights written. float32 holds every source exactly.
    """

    theta0: CheckpointConfig
    theta1: CheckpointConfig | None
    theta2: CheckpointConfig | None
    dtype: Literal["float16", "float32"]


def stage(config: BaseConfig, name: str, out: Path) -> None:
    """Write the original called `name`, theta0, theta1 or theta2, to the directory `out`.

    Args:
        config: the section of params.yaml named as the stage.
        name: which original: theta0, theta1 or theta2.
        out: the directory to write, in the diffusers layout.
    """
    originals = {"theta0": config.theta0, "theta1": config.theta1, "theta2": config.theta2}
    if name not in originals:
        raise ValueError(f"--name: given {name!r}: theta0, theta1 or theta2")
    checkpoint = originals[name]
    with atomic_directory(out) as folder:
        if checkpoint is None:
            write_nothing(folder, f"There is no {name} in this experiment: base.{name} is null.")
            return
        try:
            _write(folder, name, checkpoint, config.dtype)
        except (ValueError, OSError) as error:
            raise ValueError(f"base.{name}: {error}") from error


def _write(folder: Path, name: str, checkpoint: CheckpointConfig, dtype: str) -> None:
    from stages.checkpoints.model import read_model, write_found
    from stages.checkpoints.sources import locate

    source = locate(checkpoint.source)
    needs_configs = checkpoint.fill or not source.path.is_dir()
    configs = checkpoint.config and locate(checkpoint.config, weights=checkpoint.fill) if needs_configs else None
    model = read_model(source.path, configs and configs.path, checkpoint, partial=True)
    for location in filter(None, (configs, source)):
        for note in location.notes:
            print(f"base.{name}: {note}")
    print(f"base.{name}: {source.name}: {model.description()}")
    left_out = write_found(folder, model.from_source(source.name, configs.name if configs else ""), dtype)
    for part, reason in left_out.items():
        print(f"base.{name}: without its {part}: {reason}; a stage that takes it from here will refuse")


if __name__ == "__main__":
    run(stage)
