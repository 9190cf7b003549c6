"""A folder with a few drawings of every style, from which the programs start."""

from pathlib import Path

import pytest

from stages.mini.drawings import draw_sets
from stages.mini.drawings.portraits import STYLES


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder: of every style eight drawings to train on and two held out."""
    work = tmp_path_factory.mktemp("mini-work")
    (work / "drawings").mkdir()
    for style in STYLES:
        draw_sets.draw_array(style, range(8), work / "drawings" / f"train-{style}.npy", processes=1)
        draw_sets.draw_array(style, range(8, 10), work / "drawings" / f"held-out-{style}.npy", processes=1)
    return work
