"""One training of study.py: train, draw, embed. `python benchmarks/study_cell.py FOLDER`, from the root of the project.

FOLDER holds params.yaml: the sections of the stages, and the section `cell`, which says which stage trains on what; without a
stage the model itself is drawn. What is there is gone on from. A training that diverges leaves diverged.txt, which says so.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from stages import embed, generate  # noqa: E402
from stages.lora.config import DreamboothConfig, Text2imgConfig  # noqa: E402
from stages.pipeline.command import errors_in_one_line  # noqa: E402
from stages.pipeline.config import HousekeepingConfig, RuntimeConfig, load_params, read_params  # noqa: E402
from stages.pipeline.interruption import Interrupted, handled  # noqa: E402
from stages.pipeline.outputs import CHECKPOINTS  # noqa: E402

LORA, IMAGES, EMBEDDINGS, DIVERGED = "lora", "images", "embeddings.safetensors", "diverged.txt"


def train(folder: Path, cell: dict[str, Any]) -> bool:
    """Train, unless that was done before; whether there is something to draw with."""
    from stages import train_dreambooth, train_text2img
    from stages.lora.loop import DivergedError

    if (folder / DIVERGED).is_file() or (folder / LORA).is_dir():
        return (folder / LORA).is_dir()
    params = folder / "params.yaml"
    runtime = load_params("runtime", RuntimeConfig, params)
    housekeeping = load_params("housekeeping", HousekeepingConfig, params)
    inputs = {name: Path(cell[name]) for name in ("images", "class_images", "model")}
    rest = {"rank": cell["rank"], "seed": cell["seed"], "out": folder / LORA}
    try:
        if cell["stage"] == "train_text2img":
            config = load_params("train_text2img", Text2imgConfig, params)
            train_text2img.stage(config, runtime, housekeeping, captions=Path(cell["captions"]), **inputs, **rest)
        else:
            of_dreambooth = load_params("train_dreambooth", DreamboothConfig, params)
            train_dreambooth.stage(of_dreambooth, runtime, housekeeping, **inputs, **rest)
    except ValueError as error:
        if not isinstance(error.__cause__, DivergedError):
            raise
        (folder / DIVERGED).write_text(f"{error}\n")
        return False
    return True


def main(folder: Path) -> None:
    """Make what is missing of a cell."""
    params = folder / "params.yaml"
    cell = read_params(params)["cell"]
    os.environ["DVC_ROOT"] = str(folder)  # where .checkpoints belongs
    trained = "stage" in cell
    if trained and not train(folder, cell):
        return
    runtime = load_params("runtime", RuntimeConfig, params)
    lora = folder / LORA if trained else None
    config = load_params("generate", generate.GenerateConfig, params)
    generate.stage(config, runtime, Path(cell["model"]), folder / IMAGES, lora)
    embed.stage(load_params("embed", embed.EmbedConfig, params), runtime, folder / IMAGES, folder / EMBEDDINGS)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # it holds the result once more, for DVC, which takes no part here


if __name__ == "__main__":
    try:
        with errors_in_one_line("study"), handled():
            main(Path(sys.argv[1]))
    except Interrupted as interruption:
        print(f"study: interrupted: {interruption}", file=sys.stderr)
        raise SystemExit(128 + interruption.signal_number) from interruption
