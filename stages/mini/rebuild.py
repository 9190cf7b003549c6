"""Rebuild the mini world from nothing: run the pipeline in data/mini/dvc.yaml and copy what it made to data/mini.

Says beforehand how long that takes. An interrupted run goes on where it stopped.
"""

import argparse
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from stages.mini.training import (
    train_ancestor,
    train_captioner,
    train_dino,
    train_finetune,
    train_judge,
    train_scorer,
    train_vae,
)
from stages.pipeline.dvc_command import dvc_command
from stages.pipeline.outputs import atomic_directory, atomic_file

MINI = Path("data/mini")
WORK = Path("data/mini-work")
MADE = ("base", "anime.safetensors", "toon.ckpt", "captioner", "scorer", "dino", "judge", "asuka", "eight_bit")
MINUTES = {
    "drawings": 8.0,
    "VAE": train_vae.MINUTES,
    "ancestor": train_ancestor.MINUTES,
    "fine-tunes": 2 * train_finetune.MINUTES,
    "judge": train_judge.MINUTES,
    "captioner": train_captioner.MINUTES,
    "scorer": train_scorer.LOCKED_MINUTES + train_scorer.MINUTES,
    "DINOv2": train_dino.MINUTES,
    "evaluation": 15.0,
}


def announcement() -> str:
    """How long each step takes: trainings have budgets in minutes."""
    lines = [f"  {name:<12} {minutes:>4.0f} min" for name, minutes in MINUTES.items()]
    hours = sum(MINUTES.values()) / 60
    total = f"about {hours:.1f} hours in all: budgets in minutes, in which a GPU sees many times more drawings than a CPU"
    return "\n".join(["rebuilding the mini world:", *lines, total])


def copy_made(work: Path, mini: Path) -> None:
    """Put what the pipeline made in the place of what is in data/mini."""
    for name in MADE:
        if (work / name).is_dir():
            with atomic_directory(mini / name) as folder:
                shutil.copytree(work / name, folder, dirs_exist_ok=True)
        else:
            with atomic_file(mini / name) as part:
                shutil.copyfile(work / name, part)


def main(arguments: Sequence[str] | None = None) -> None:
    """Say how long it takes, build, copy."""
    parser = argparse.ArgumentParser(prog="python -m stages.mini.rebuild", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="only say how long it takes")
    options = parser.parse_args(arguments)
    print(announcement(), flush=True)
    if options.dry:
        return
    subprocess.run(dvc_command("repro", str(MINI / "dvc.yaml"), wait=False), check=True)
    copy_made(WORK, MINI)


if __name__ == "__main__":
    main()
