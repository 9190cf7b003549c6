"""Take the one VAE that every merge of the sweep uses.

Reads both originals (in theta1's place, perhaps a note that there is none) and, if the config names another source, that.
Writes the VAE alone in the diffusers layout: config.json and its weights.

It is a stage of its own because the VAE is the same for every alpha (even a merged one: its weight is not the sweep's), so
the images are encoded once, with this VAE, for the whole sweep.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import Alpha, Source, strict
from stages.pipeline.outputs import atomic_directory, holds_something


@dataclass(frozen=True, config=strict)
class VaeConfig:
    """Which VAE to use.

    Attributes:
        source: Whose VAE it is; "merged" for the weighted sum of theta0's and theta1's. Images of a merged VAE can turn dull.
        alpha: The weight of theta1's if `source` is "merged", in [0, 1], else null.
        other: Where it comes from if `source` is "other", else null: a VAE or a model in the diffusers layout, or a single
            file with a VAE of the same architecture as theta0's.
        dtype: Of the weights written.
    """

    source: Literal["theta0", "theta1", "merged", "other"]
    alpha: Alpha | None
    other: Source | None
    dtype: Literal["float16", "float32"]

    def __post_init__(self) -> None:
        """Check that the other source, and the weight, are given where, and only where, they are used."""
        for name, value, used in (("other", self.other, "other"), ("alpha", self.alpha, "merged")):
            if (self.source == used) != (value is not None):
                raise ValueError(f"{name}: give it if source is {used}, and set it to null if not; source is {self.source}")


def stage(config: VaeConfig, theta0: Path, theta1: Path, out: Path) -> None:
    """Write the VAE to the directory `out`.

    Args:
        config: the section of params.yaml named as the stage.
        theta0: the directory of the first original.
        theta1: the directory of the second original; nothing in it where there is none.
        out: the directory to write the VAE to.
    """
    from stages.checkpoints.components import check_latents, read_vae
    from stages.checkpoints.merging.models import merge_vaes
    from stages.checkpoints.model import write_component
    from stages.checkpoints.sources import locate

    if config.source in ("theta1", "merged") and not holds_something(theta1):
        raise ValueError(f"vae.source: {config.source}, but there is no theta1 in this experiment: take theta0 or other")
    other = config.other and locate(config.other)
    _check_held(config.source, {"theta0": theta0, "theta1": theta1})
    path = other.path if other else theta1 if config.source == "theta1" else theta0
    vae = read_vae(path, theta0 / "vae")
    if config.alpha is not None:
        vae = merge_vaes(vae, read_vae(theta1, theta0 / "vae"), config.alpha)
    check_latents(vae, theta0 / "unet")
    if other:
        for note in other.notes:
            print(f"vae.other: {note}")
        vae = vae.from_source(other.name)
    with atomic_directory(out) as folder:
        write_component(folder, "vae", vae, config.dtype)


def _check_held(source: str, thetas: Mapping[str, Path]) -> None:
    """Refuse to take the VAE of an original that has none, which `base` has said."""
    from stages.checkpoints.files.weight_files import find_weights

    for name, folder in thetas.items():
        if source in (name, "merged") and not find_weights(folder / "vae"):
            raise ValueError(
                f"vae.source: {source}, and {name} holds no VAE, or none that is finite (what base printed says which): "
                f"take another, or set base.{name}.fill to true if it holds none"
            )


if __name__ == "__main__":
    run(stage)
