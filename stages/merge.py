"""Merge the originals into one model, by default theta = (1 - alpha) * theta0 + alpha * theta1.

Reads theta0, theta1 and theta2 in the diffusers layout (theta1 empty: passthrough; theta2 for the methods that measure
differences from it) and the VAE. Writes the merged model in the diffusers layout: the UNet by the method of the config, the
text encoder by its policy, with the tokenizer of the model that it is from, the VAE copied whole, and theta0's configs and
scheduler. The recipe is in the metadata of the weights; `python -m stages.checkpoints FILE` prints it.

It is a stage of its own because it is what a sweep over alpha repeats: one merge an alpha, the originals read once.
"""

import shutil
from pathlib import Path

from stages.checkpoints.merging.config import MergeConfig
from stages.pipeline.command import run
from stages.pipeline.outputs import atomic_directory, holds_something


def stage(
    config: MergeConfig, theta0: Path, theta1: Path, vae: Path, alpha: float, out: Path, theta2: Path | None = None
) -> None:
    """Write the merge with weight `alpha` of theta1, in [0, 1], to the directory `out`. Without such a directory, no theta2.

    Args:
        config: the section of params.yaml named as the stage.
        theta0: the directory of the first model.
        theta1: the directory of the second model; nothing in it for the method passthrough.
        vae: the directory of the VAE that the merge gets.
        alpha: the weight of theta1, in [0, 1].
        out: the directory to write the merge to.
        theta2: the directory of the third model; left out, or no directory, where the method needs none.
    """
    from stages.checkpoints.files.writing import check_space, written_size
    from stages.checkpoints.merging.models import merge_models
    from stages.checkpoints.model import read_model, write_model

    if not 0 <= alpha <= 1:
        raise ValueError(f"--alpha: given {alpha}: a number from 0 (theta0 alone) to 1 (theta1 alone)")
    given = [path if path and holds_something(path) else None for path in (theta0, theta1, theta2)]
    models = [read_model(path, None, partial=True) if path else None for path in given]
    if models[0] is None:
        raise ValueError(f"{theta0} is empty: theta0 is what every method starts from")
    merged = merge_models(models[0], models[1], config, alpha, models[2])
    with atomic_directory(out) as folder:
        vae_size = sum(file.stat().st_size for file in vae.rglob("*"))
        check_space(folder, vae_size + sum(written_size(part.tensors, config.dtype) for part in merged.components.values()))
        write_model(folder, merged, config.dtype)
        shutil.copytree(vae, folder / "vae", copy_function=shutil.copyfile)


if __name__ == "__main__":
    run(stage)
