"""A comparison drawn by hand: pictures of one colour, embeddings chosen so that the answers are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import save_file

from stages.checkpoints.file_names import HISTORY_FILE, LORA_FILE, PREVIEWS
from stages.dataset.metadata import SKIPPED, SKIPPED_COLUMNS, ManifestRow, write_captions, write_manifest
from stages.drawing.cells import Cell, cells_of, write_cells
from stages.drawing.image_files import write_image
from stages.measures.embedded_files import Embedded, read_embedded, write_embedded
from stages.pipeline.tables import write_table
from stages.pipeline.variants import DATASET, Kind, Variant
from stages.report.config import CardConfig, Names, ReportConfig
from stages.report.contents import Comparison, read_previews, read_training_images
from stages.report.histories import read_history
from stages.report.results import read_results
from stages.report.sweep import Sweep

SUBJECT_PROMPTS = ["asuka, <green> background", "asuka, glasses", "asuka"]
OTHER_PROMPTS = ["a portrait", "a portrait, blond hair", "a toon portrait"]
SEEDS = [3, 5, 8]
NAMES = Names(
    theta0="toon",
    theta1="anime",
    merge="merge",
    text2img="text2img LoRA",
    dreambooth="DreamBooth LoRA",
    textual_inversion="textual inversion",
)
CONFIG = ReportConfig(
    title="Two & one",
    names=NAMES,
    subjects={},
    primary="trigger_specificity",
    contrasts=(("text2img", "dreambooth"), ("text2img", "merge"), ("dreambooth", "merge")),
    images_per_cell=2,
    grid_prompts=1,
    image_size=24,
    resampling="nearest",
    training_images=3,
    font=None,
    card=CardConfig(license=None, base_models=("a/toon",)),
    single_file=False,
)
PARAMS: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
TRAININGS: dict[Kind, dict[str, Any]] = {
    "text2img": PARAMS["train_text2img"],
    "dreambooth": PARAMS["train_dreambooth"],
    "textual_inversion": PARAMS["train_textual_inversion"],
}
COLOURS: dict[Kind, tuple[int, int, int]] = {
    "theta0": (200, 0, 0),
    "theta1": (0, 200, 0),
    "merge": (0, 0, 200),
    "text2img": (0, 200, 200),
    "dreambooth": (200, 0, 200),
    "textual_inversion": (100, 100, 0),
}
LIKENESS: dict[Kind, float] = {
    "theta0": 0.2,
    "theta1": 0.3,
    "merge": 0.4,
    "text2img": 0.5,
    "dreambooth": 0.7,
    "textual_inversion": 0.45,
}
ELSEWHERE = 0.1
"""Likeness to the subject where it is not asked for."""
SWEEP = Sweep(
    alpha=(0.7,),
    rank=(4,),
    dreambooth_rank=(4,),
    vectors=(),
    seed=(0,),
    lora_scale=(1.0,),
    kept_steps={"text2img": (), "dreambooth": (), "textual_inversion": ()},
    bases=("theta0", "theta1"),
)
WIDE = replace(SWEEP, alpha=(0.7, 0.3), rank=(4, 2), dreambooth_rank=())
"""Two alphas, two ranks and one kind of LoRA."""
NARROW = replace(SWEEP, dreambooth_rank=(), bases=("theta0",))
TEXT2IMG, DREAMBOOTH = Variant("text2img", 0.7, 4, 0), Variant("dreambooth", 0.7, 4, 0)


def cells(seeds: list[int] | None = None) -> list[Cell]:
    return cells_of(SUBJECT_PROMPTS, OTHER_PROMPTS, seeds or SEEDS)


def likeness(variant: Variant, cell: Cell) -> float:
    """Of an image to the subject: its kind's where it is asked for, `ELSEWHERE` else; each prompt and seed adds a little."""
    whole = LIKENESS[variant.kind] if cell.prompts == "subject" else ELSEWHERE
    return whole + cell.prompt_index / 100 + cell.seed / 1000


def alignment(cell: Cell) -> float:
    """Of an image to its prompt."""
    return 0.25 + cell.prompt_index / 100 + cell.seed / 1000


def vector(to_subject: float, to_prompt: float, prompt_index: int, seed: int) -> np.ndarray:
    """An embedding of length 1 with these cosines to the subject, (1, 0 …), and to a prompt, which has an axis of its own."""
    found = np.zeros(20, dtype=np.float32)
    found[0], found[1 + prompt_index] = to_subject, to_prompt
    found[10 + seed] = np.sqrt(1 - to_subject**2 - to_prompt**2)
    return found


def embed_cells(of_cells: list[Cell], likenesses: list[float], alignments: list[float]) -> Embedded:
    """Embeddings with these likenesses, by CLIP and by DINOv2 alike."""
    rows = np.stack(
        [vector(a, b, cell.prompt_index, cell.seed) for cell, a, b in zip(of_cells, likenesses, alignments, strict=True)]
    )
    prompts = list(dict.fromkeys(cell.prompt for cell in of_cells))
    texts = np.eye(20, dtype=np.float32)[1 : 1 + len(prompts)]
    names = [cell.file_name for cell in of_cells]
    return Embedded({"clip": rows, "dino": rows}, texts, names, ["00"] * len(names), prompts, {"clip": "c", "dino": "d"}, "")


def write_variant(root: Path, variant: Variant, seeds: list[int] | None = None) -> None:
    """Write images/ and embeddings/ of a variant, and lora/ of a LoRA."""
    folder = root / "images" / variant.name
    folder.mkdir(parents=True)
    drawn = cells(seeds)
    for cell in drawn:
        recipe = {"prompt": cell.prompt, "num_inference_steps": 25, "unet_sha256": "ab" * 32}
        write_image(Image.new("RGB", (16, 16), COLOURS[variant.kind]), folder / cell.file_name, recipe)
    write_cells(folder, drawn)
    embedded = embed_cells(drawn, [likeness(variant, cell) for cell in drawn], [alignment(cell) for cell in drawn])
    write_embedded(embedded, root / "embeddings" / f"{variant.name}.safetensors")
    if variant.rank is not None and not (root / "lora" / variant.training.name).exists():
        write_history(root / "lora" / variant.training.name / HISTORY_FILE, (50, 100) if variant.kind == "text2img" else ())
        save_file({"down": np.zeros((4, 5), np.float32)}, root / "lora" / variant.training.name / LORA_FILE)


def write_history(path: Path, held_out: tuple[int, ...] = ()) -> None:
    path.parent.mkdir(parents=True)
    rows = (f"{step},{1 / step},{0.5 if step in held_out else ''},0.001,{step / 10}\n" for step in range(1, 101))
    path.write_text("step,loss,held_out_loss,learning_rate,grad_norm\n" + "".join(rows))


def write_previews(folder: Path) -> None:
    folder.mkdir()
    for index, prompt in enumerate((SUBJECT_PROMPTS[0], OTHER_PROMPTS[0])):
        for step in (50, 100):
            colour = (100 * index, step, 0)
            recipe = {"prompt": prompt, "training_step": step}
            write_image(Image.new("RGB", (16, 16), colour), folder / f"p{index}-step{step:06d}.png", recipe)


def write_world(root: Path, sweep: Sweep = SWEEP, held_out: int = 2) -> Path:
    """Write all that the compare stage reads."""
    for variant in sweep.variants:
        write_variant(root, variant)
    write_training_images(root, held_out)
    return root


def write_training_images(root: Path, held_out: int = 2) -> None:
    """Write raw/, dataset/ and the embeddings of eight images, the first of which are held out: all are the subject itself."""
    for folder in ("raw", "dataset/train", "dataset/test"):
        (root / folder).mkdir(parents=True)
    names = [f"{number:04}.png" for number in range(8)]
    rows = []
    for number, name in enumerate(names):
        image, split = Image.new("RGB", (16, 16), (30 * number, 0, 0)), "test" if number < held_out else "train"
        image.save(root / "raw" / name)
        rows.append(ManifestRow(name, "drawn", "00", "00", "", 16, 16, split))
        image.save(root / "dataset" / split / name)
    write_manifest(root / "raw", rows)
    write_table(root / "raw" / SKIPPED, SKIPPED_COLUMNS, [("twin.png", "shows the same as <one>.png")])
    for split, of_split in (("test", names[:held_out]), ("train", names[held_out:])):
        if of_split:
            write_captions(root / "dataset" / split, {name: f"asuka {name[3]}" for name in of_split})
        else:
            (root / "dataset" / split).rmdir()
    images = np.zeros((len(names), 20), dtype=np.float32)
    images[:, 0] = 1
    nothing = np.zeros((0, 20), dtype=np.float32)
    embedded = Embedded(
        {"clip": images, "dino": images}, nothing, names, ["00"] * len(names), [], {"clip": "c", "dino": "d"}, ""
    )
    write_embedded(embedded, root / "embeddings" / f"{DATASET}.safetensors")


def leak(root: Path, variant: Variant) -> None:
    """Raise a LoRA's likeness to the subject, and lower that to the prompt, where nothing asks for it."""
    drawn = cells()
    spoilt = {"subject": (0.0, 0.0), "other": (0.4, -0.2)}
    embedded = embed_cells(
        drawn,
        [likeness(variant, cell) + spoilt[cell.prompts][0] for cell in drawn],
        [alignment(cell) + spoilt[cell.prompts][1] for cell in drawn],
    )
    write_embedded(embedded, root / "embeddings" / f"{variant.name}.safetensors")


def rewrite(root: Path, name: str, **changes: object) -> None:
    """Change something of a file of embeddings."""
    path = root / "embeddings" / f"{name}.safetensors"
    write_embedded(replace(read_embedded(path), **changes), path)


def read_world(root: Path, sweep: Sweep = SWEEP, config: ReportConfig = CONFIG) -> Comparison:
    """Read it as the compare stage does."""
    return Comparison(
        results=read_results(sweep, root / "images", root / "embeddings", root / "raw", config.subjects),
        training=read_training_images(root / "dataset", root / "raw", config.training_images),
        histories={variant: read_history(root / "lora" / variant.name / HISTORY_FILE) for variant in sweep.trained},
        previews={variant: read_previews(root / "lora" / variant.name / PREVIEWS) for variant in sweep.trained},
        files={variant: root / "lora" / variant.name / LORA_FILE for variant in sweep.trained},
        trainings=TRAININGS,
        merging={"method": "weighted_sum"},
        config=config,
        dataset=root / "dataset",
        loras=root / "lora",
    )
