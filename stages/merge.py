"""Merge the two originals into one model: theta = (1 - alpha) * theta0 + alpha * theta1.

Reads theta0 and theta1 in the diffusers layout (theta1 empty: passthrough) and the VAE. Writes the merged model in the
diffusers layout: the UNet by the method of the config, the text encoder by its policy, the VAE copied whole, and theta0's
configs, scheduler and tokenizer. The recipe is in the metadata of the weights.

It is a stage of its own because it is what a sweep over alpha repeats: one merge an alpha, the originals read once.
"""

import shutil
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import strict
from stages.pipeline.outputs import atomic_directory


@dataclass(frozen=True, config=strict)
class MergeConfig:
    """How to merge.

    Attributes:
        method: weighted_sum, or passthrough for an experiment without a merge.
        text_encoder: Merged like the UNet, or taken whole from one of the originals.
        dtype: Of the weights written; the merge itself is computed in float32 and rounded once.
    """

    method: Literal["weighted_sum", "passthrough"]
    text_encoder: Literal["merged", "theta0", "theta1"]
    dtype: Literal["float16", "float32"]


def stage(config: MergeConfig, theta0: Path, theta1: Path, vae: Path, alpha: float, out: Path) -> None:
    """Write the merge with weight `alpha` of theta1, in [0, 1], to the directory `out`."""
    from stages.checkpoints.merging import MergePlan, merge_models
    from stages.checkpoints.model import read_model, write_model

    if not 0 <= alpha <= 1:
        raise ValueError(f"--alpha: given {alpha}: a number from 0 (theta0 alone) to 1 (theta1 alone)")
    models = [read_model(path, None) if any(path.iterdir()) else None for path in (theta0, theta1)]
    if models[0] is None:
        raise ValueError(f"{theta0} is empty: theta0 is what every method starts from")
    merged = merge_models(models[0], models[1], MergePlan(config.method, alpha, config.text_encoder))
    with atomic_directory(out) as folder:
        write_model(folder, merged, config.dtype)
        shutil.copytree(vae, folder / "vae", copy_function=shutil.copyfile)


if __name__ == "__main__":
    run(stage)
