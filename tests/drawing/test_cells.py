from pathlib import Path

import pytest
from PIL import Image

from stages.drawing.cells import Cell, cells_of, read_cells, write_cells
from stages.drawing.image_files import write_image


def picture(folder: Path, cell: Cell) -> None:
    write_image(Image.new("RGB", (2, 2)), folder / cell.file_name, {})


def test_cells_come_prompt_by_prompt():
    assert [cell.file_name for cell in cells_of(["a"], ["b"], [3, 1])] == ["p0-s3.png", "p0-s1.png", "p1-s3.png", "p1-s1.png"]
    assert [cell.prompts for cell in cells_of(["a"], ["b"], [3])] == ["subject", "other"]


def test_cells_come_back(tmp_path):
    cells = cells_of(["a, b", 'say "c"', "two\rlines"], ["a\nb", "\0"], [0, 7])
    for cell in cells:
        picture(tmp_path, cell)
    write_cells(tmp_path, cells)
    assert read_cells(tmp_path) == cells


def test_missing_picture_is_named(tmp_path):
    cells = cells_of(["a"], [], [0, 1])
    picture(tmp_path, cells[0])
    write_cells(tmp_path, cells)
    with pytest.raises(FileNotFoundError, match=r"p0-s1\.png"):
        read_cells(tmp_path)


def test_missing_folder_says_which_stage_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="stage generate"):
        read_cells(tmp_path / "theta0")


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n",
        "file_name,prompt,seed\np0-s1.png,a,1\n",
        "file_name,prompts,prompt,seed\np0-s1.png,subject,a,2\n",
        "file_name,prompts,prompt,seed\nx.png,subject,a,2\n",
        "file_name,prompts,prompt,seed\np0-s1.png,both,a,1\n",
    ],
)
def test_wrong_table_is_refused(tmp_path, text):
    (tmp_path / "cells.csv").write_text(text)
    with pytest.raises(ValueError, match=r"cells\.csv"):
        read_cells(tmp_path)
