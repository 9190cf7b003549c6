import pytest

from stages.pipeline.config import ParamsError, RuntimeConfig, validate
from stages.score import ScoreConfig, stage

RUNTIME = RuntimeConfig(device="cpu", threads=1, dtype="float32")
SCORER = {"path": ".", "repo": None, "revision": None, "file": None, "sha256": None}


@pytest.mark.stage
def test_every_cell_gets_a_score(tmp_path):
    from PIL import Image

    from stages.drawing.cells import cells_of, write_cells
    from stages.report.scores import read_scores
    from tests.drawing.tiny_models import save_tiny_scorer

    cells = cells_of(["a cat", "hat"], [0, 5])
    for name in ("images", "references"):
        (tmp_path / name).mkdir()
        for index, cell in enumerate(cells):
            Image.new("RGB", (32, 32), (60 * index, 9, 99)).save(tmp_path / name / cell.file_name)
    write_cells(tmp_path / "images", cells)
    config = validate(
        "score", ScoreConfig, {"scorer": SCORER | {"path": save_tiny_scorer(tmp_path / "scorer")}, "batch_size": 3}
    )
    for name in ("one.csv", "two.csv"):
        stage(config, RUNTIME, tmp_path / "images", tmp_path / "references", tmp_path / "scores" / name)
    scores = read_scores(tmp_path / "scores" / "one.csv", cells)
    assert all(-1 <= value <= 1 for values in scores.values() for value in values.values())
    assert len({values["prompt_similarity"] for values in scores.values()}) == 4
    assert (tmp_path / "scores" / "one.csv").read_bytes() == (tmp_path / "scores" / "two.csv").read_bytes()


def test_nothing_to_compare_with_is_an_error(tmp_path):
    from tests.report.small_comparison import write_world

    images = write_world(tmp_path) / "images" / "theta0"
    config = validate("score", ScoreConfig, {"scorer": SCORER, "batch_size": 1})
    with pytest.raises(FileNotFoundError, match="holds no PNG files"):
        stage(config, RUNTIME, images, tmp_path / "lora", tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("leaf", "values"),
    [
        ("scorer", {"scorer": SCORER | {"path": "no/such/folder"}}),
        ("scorer", {"scorer": SCORER | {"path": None, "repo": "owner/name", "revision": "main"}}),
        ("scorer.file", {"scorer": SCORER | {"file": "model.safetensors"}}),
        ("batch_size", {"batch_size": 0}),
    ],
)
def test_wrong_value_names_its_leaf(leaf, values):
    with pytest.raises(ParamsError, match=rf"score\.{leaf}"):
        validate("score", ScoreConfig, {"scorer": SCORER, "batch_size": 1} | values)
