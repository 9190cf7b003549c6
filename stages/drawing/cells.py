"""The folder of images that one variant of the model made: one PNG a prompt and seed, and cells.csv. Imports no torch."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.pipeline.tables import write_table

CELLS_FILE = "cells.csv"
COLUMNS = ("file_name", "prompts", "prompt", "seed")

Prompts = Literal["subject", "other"]
PROMPTS: tuple[Prompts, ...] = ("subject", "other")
"""The two lists of prompts: those that ask for what the LoRAs learnt, and those that do not."""


@dataclass(frozen=True)
class Cell:
    """One prompt with one seed.

    Attributes:
        prompt_index: the prompt's number, from 0, over both lists.
        prompt: the text.
        seed: of the noise.
        prompts: the list that the prompt is of.
    """

    prompt_index: int
    prompt: str
    seed: int
    prompts: Prompts = "subject"

    @property
    def file_name(self) -> str:
        """Name of the cell's picture, `p<prompt index>-s<seed>.png`."""
        return f"p{self.prompt_index}-s{self.seed}.png"


def cells_of(subject_prompts: Sequence[str], other_prompts: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Every prompt with every seed, prompt by prompt."""
    lists: tuple[tuple[Prompts, Sequence[str]], ...] = (("subject", subject_prompts), ("other", other_prompts))
    listed: list[tuple[Prompts, str]] = [(prompts, prompt) for prompts, texts in lists for prompt in texts]
    return [Cell(index, prompt, seed, prompts) for index, (prompts, prompt) in enumerate(listed) for seed in seeds]


def write_cells(folder: Path, cells: Iterable[Cell]) -> None:
    """Write cells.csv."""
    write_table(folder / CELLS_FILE, COLUMNS, ((cell.file_name, cell.prompts, cell.prompt, cell.seed) for cell in cells))


def read_cells(folder: Path) -> list[Cell]:
    """Read cells.csv, and check that every picture it names is there.

    Raises:
        FileNotFoundError: the folder, its cells.csv or one of the pictures is missing.
        ValueError: cells.csv has other columns, or a file name that says another prompt or seed than its row.
    """
    path = folder / CELLS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; make the images of this variant first (stage generate)")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: has the columns {reader.fieldnames}, expected {list(COLUMNS)}")
        cells = [_cell(path, row) for row in reader]
    missing = [cell.file_name for cell in cells if not (folder / cell.file_name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder / missing[0]}: named by {CELLS_FILE} and missing ({len(missing)} in all)")
    return cells


def _cell(path: Path, row: Mapping[str, str]) -> Cell:
    index, _, seed = Path(row["file_name"]).stem.removeprefix("p").partition("-s")
    if not (index.isdigit() and seed == row["seed"] and seed.isdigit()):
        raise ValueError(f"{path}: {row['file_name']} does not say the prompt and the seed of its row (p<prompt>-s<seed>.png)")
    for prompts in PROMPTS:
        if row["prompts"] == prompts:
            return Cell(int(index), row["prompt"], int(seed), prompts)
    raise ValueError(f"{path}: {row['prompts']!r} is no list of prompts; it says {' or '.join(PROMPTS)}")
