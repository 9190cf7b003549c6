"""Take the one VAE that every merge of the sweep uses.

Reads both originals (theta1 may be an empty directory) and, if the config names another source, that. Writes the VAE alone
in the diffusers layout: config.json and its weights.

It is a stage of its own because VAEs are never averaged (the images turn dark and blurry), so it is the same for every
alpha: the images are encoded once, with this VAE, for the whole sweep.
"""

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import Source, strict
from stages.pipeline.outputs import atomic_directory


@dataclass(frozen=True, config=strict)
class VaeConfig:
    """Which VAE to use.

    Attributes:
        source: Whose VAE it is.
        other: Where it comes from if `source` is "other", else null: a VAE or a model in the diffusers layout, or a single
            file with a VAE of the same architecture as theta0's.
        dtype: Of the weights written.
    """

    source: Literal["theta0", "theta1", "other"]
    other: Source | None
    dtype: Literal["float16", "float32"]

    def __post_init__(self) -> None:
        """Check that the other source is given where, and only where, it is used."""
        if (self.source == "other") != (self.other is not None):
            raise ValueError(f"other: give it if source is other, and set it to null if not; source is {self.source}")


def stage(config: VaeConfig, theta0: Path, theta1: Path, out: Path) -> None:
    """Write the VAE to the directory `out`."""
    from stages.checkpoints.components import check_latents, read_vae
    from stages.checkpoints.model import write_component
    from stages.checkpoints.sources import locate

    originals = {"theta0": theta0, "theta1": theta1}
    other = config.other and locate(config.other)
    path = other.path if other else originals[config.source]
    if config.source == "theta1" and not any(theta1.iterdir()):
        raise ValueError("vae.source: theta1, but there is none in this experiment: take theta0 or other")
    vae = read_vae(path, theta0 / "vae")
    check_latents(vae, theta0 / "unet")
    if other:
        for note in other.notes:
            print(f"vae.other: {note}")
        vae = vae.from_source(other.name)
    with atomic_directory(out) as folder:
        write_component(folder, "vae", vae, config.dtype)


if __name__ == "__main__":
    run(stage)
