"""The folder of images that one variant of the model made: one PNG a prompt and seed, and cells.csv. Imports no torch."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.pipeline.tables import write_table

CELLS_FILE = "cells.csv"
COLUMNS = ("file_name", "prompt", "seed")


@dataclass(frozen=True)
class Cell:
    """One prompt with one seed."""

    prompt_index: int
    prompt: str
    seed: int

    @property
    def file_name(self) -> str:
        """Name of the cell's picture, `p<prompt index>-s<seed>.png`."""
        return f"p{self.prompt_index}-s{self.seed}.png"


def cells_of(prompts: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Every prompt with every seed, prompt by prompt."""
    return [Cell(index, prompt, seed) for index, prompt in enumerate(prompts) for seed in seeds]


def write_cells(folder: Path, cells: Iterable[Cell]) -> None:
    """Write cells.csv."""
    write_table(folder / CELLS_FILE, COLUMNS, ((cell.file_name, cell.prompt, cell.seed) for cell in cells))


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
    return Cell(int(index), row["prompt"], int(seed))
