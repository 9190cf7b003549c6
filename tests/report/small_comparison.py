"""A comparison drawn by hand: pictures of one colour, scores chosen so that the answers are known."""

import csv
from pathlib import Path

from PIL import Image

from stages.checkpoints.file_names import HISTORY_FILE, PREVIEWS
from stages.drawing.cells import Cell, cells_of, write_cells
from stages.pipeline.png_text import write_png
from stages.pipeline.variants import Kind, Variant
from stages.report.config import Names, ReportConfig
from stages.report.contents import Comparison, read_previews, read_training_images
from stages.report.histories import read_history
from stages.report.results import read_results
from stages.report.scores import read_scores, write_scores
from stages.report.sweep import Sweep

PROMPTS = ["a portrait", "asuka, <green> background"]
SEEDS = [3, 5, 8]
NAMES = Names(theta0="toon", theta1="anime", merge="merge", text2img="text2img LoRA", dreambooth="DreamBooth LoRA")
CONFIG = ReportConfig(
    title="Two & one",
    names=NAMES,
    subject_prompts=(1,),
    images_per_cell=2,
    image_size=24,
    resampling="nearest",
    training_images=3,
    font=None,
)
COLOURS: dict[Kind, tuple[int, int, int]] = {
    "theta0": (200, 0, 0),
    "theta1": (0, 200, 0),
    "merge": (0, 0, 200),
    "text2img": (0, 200, 200),
    "dreambooth": (200, 0, 200),
}
LIKENESS: dict[Kind, float] = {"theta0": 0.2, "theta1": 0.3, "merge": 0.4, "text2img": 0.5, "dreambooth": 0.7}
SWEEP = Sweep(alpha=(0.7,), rank=(4,), dreambooth_rank=(4,), bases=("theta0", "theta1"), lora_scale=1.0)
WIDE = Sweep(alpha=(0.7, 0.3), rank=(4, 2), dreambooth_rank=(), bases=("theta0", "theta1"), lora_scale=1.0)
"""Two alphas, two ranks and one kind of LoRA."""
NARROW = Sweep(alpha=(0.7,), rank=(4,), dreambooth_rank=(), bases=("theta0",), lora_scale=1.0)


def write_variant(root: Path, variant: Variant, seeds: list[int] | None = None) -> None:
    """Write images/ and scores/ of a variant, and lora/ of a LoRA; its likeness shows on the second prompt only."""
    folder = root / "images" / variant.name
    folder.mkdir(parents=True)
    cells = cells_of(PROMPTS, seeds or SEEDS)
    for cell in cells:
        text = {"prompt": cell.prompt, "num_inference_steps": "25", "unet_sha256": "ab" * 32}
        write_png(Image.new("RGB", (16, 16), COLOURS[variant.kind]), folder / cell.file_name, text)
    write_cells(folder, cells)
    (root / "scores").mkdir(exist_ok=True)
    write_scores(root / "scores" / f"{variant.name}.csv", {cell: _scores(variant, cell) for cell in cells})
    if variant.rank is not None:
        write_history(root / "lora" / variant.name / HISTORY_FILE, (50, 100) if variant.kind == "text2img" else ())


def _scores(variant: Variant, cell: Cell) -> dict[str, float]:
    likeness = LIKENESS[variant.kind] if cell.prompt_index == 1 else 0.1
    return {"prompt_similarity": 0.25 + cell.seed / 1000, "reference_similarity": likeness + cell.seed / 100}


def write_history(path: Path, held_out: tuple[int, ...] = ()) -> None:
    path.parent.mkdir(parents=True)
    rows = (f"{step},{1 / step},{0.5 if step in held_out else ''},0.001,{step / 10}\n" for step in range(1, 101))
    path.write_text("step,loss,held_out_loss,learning_rate,grad_norm\n" + "".join(rows))


def write_previews(folder: Path) -> None:
    folder.mkdir()
    for index, prompt in enumerate(PROMPTS):
        for step in (50, 100):
            colour = (100 * index, step, 0)
            text = {"prompt": prompt, "step": str(step)}
            write_png(Image.new("RGB", (16, 16), colour), folder / f"p{index}-step{step:06d}.png", text)


def write_world(root: Path, sweep: Sweep = SWEEP) -> Path:
    """Write all that the compare stage reads."""
    for variant in sweep.variants:
        write_variant(root, variant)
    write_training_images(root)
    return root


def write_training_images(root: Path) -> None:
    """Write dataset/, six images with captions."""
    dataset = root / "dataset"
    dataset.mkdir()
    for number in range(6):
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(dataset / f"{number:04}.png")
    with (dataset / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("file_name", "caption"), *((f"{number:04}.png", f"asuka {number}") for number in range(6))]
        )


def leak(root: Path, variant: Variant) -> None:
    """Raise a LoRA's likeness to the training images, and lower that to the prompt, where nothing asks for it."""
    path = root / "scores" / f"{variant.name}.csv"
    changes = {"prompt_similarity": -0.2, "reference_similarity": 0.4}
    scores = read_scores(path, cells_of(PROMPTS, SEEDS))
    spoilt = {
        cell: {metric: value + (0 if cell.prompt_index == 1 else changes[metric]) for metric, value in values.items()}
        for cell, values in scores.items()
    }
    write_scores(path, spoilt)


def read_world(root: Path, sweep: Sweep = SWEEP) -> Comparison:
    """Read it as the compare stage does."""
    return Comparison(
        results=read_results(sweep, root / "images", root / "scores"),
        training=read_training_images(root / "dataset", CONFIG.training_images),
        histories={
            variant: read_history(root / "lora" / variant.name / HISTORY_FILE) for variant in sweep.variants if variant.rank
        },
        previews={
            variant: read_previews(root / "lora" / variant.name / PREVIEWS) for variant in sweep.variants if variant.rank
        },
        config=CONFIG,
    )
