"""LoRAs, or whole models, that a training keeps on its way: which step is best is seen when each of them has drawn."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.checkpoints.adapters.kohya_metadata import TRAINING
from stages.lora.run import Run
from stages.lora.tuned_model import Tuned, weights_files, write_rest, write_weights
from stages.pipeline.seals import sealed_file
from stages.pipeline.variants import kept_folder, kept_steps

KEPT = "kept"


@dataclass(frozen=True)
class Keeper:
    """Keeps what is trained until the run has ended.

    Attributes:
        run: whose settings say when.
        tuned: what is trained.
        base: gives the metadata of a LoRA; None for whole models.
        folder: where they are kept.
    """

    run: Run
    tuned: Tuned
    base: Callable[[], Mapping[str, Any] | None]
    folder: Path

    def __call__(self, step: int) -> None:
        """Keep what is trained, after so many steps; training goes on as if this had not been."""
        for name in weights_files(self.run):
            file = self.folder / kept_folder(step) / Path(name).name
            file.parent.mkdir(parents=True, exist_ok=True)
            with sealed_file(file) as part:
                write_weights(self.run, self.tuned, _at(step, self.base()), name, part)

    def hand_over(self, out: Path) -> None:
        """Write all that was kept into the folder of the result, each into a folder of its own, as the result itself is."""
        config = self.run.config
        for step in kept_steps(config.keep_every, config.max_train_steps):
            for name in weights_files(self.run):
                target = out / kept_folder(step) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / kept_folder(step) / target.name, target)
            if config.tuned == "full":
                write_rest(self.run.model, out / kept_folder(step))


def _at(step: int, base: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The metadata of a LoRA that has learnt for so many steps."""
    return {**base, TRAINING: {**base[TRAINING], "steps": step}} if base and TRAINING in base else base


def make_keeper(run: Run, tuned: Tuned, base: Callable[[], Mapping[str, Any] | None]) -> Keeper | None:
    """What keeps the LoRAs of a run; None where only the last is wanted."""
    if run.config.keep_every is None or run.folder is None:
        return None
    return Keeper(run, tuned, base, run.folder / KEPT)
