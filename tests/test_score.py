import pytest

from stages.pipeline.config import ParamsError, RuntimeConfig, validate
from stages.score import ScoreConfig, stage
from tests.dataset.loopback_hub import COMMIT, model_repository, reached

RUNTIME = RuntimeConfig(device="cpu", threads=1, dtype="float32")
SCORER = {"path": ".", "repo": None, "revision": None, "file": None, "sha256": None}


@pytest.fixture
def pictures(tmp_path):
    """The folder of a comparison's images, with as many references beside it; and the cells."""
    from PIL import Image

    from stages.drawing.cells import cells_of, write_cells

    cells = cells_of(["a cat", "hat"], [0, 5])
    for name in ("images", "references"):
        (tmp_path / name).mkdir()
        for index, cell in enumerate(cells):
            Image.new("RGB", (32, 32), (60 * index, 9, 99)).save(tmp_path / name / cell.file_name)
    write_cells(tmp_path / "images", cells)
    return tmp_path / "images", cells


@pytest.mark.stage
def test_every_cell_gets_a_score(pictures, tmp_path):
    from stages.report.scores import read_scores
    from tests.drawing.tiny_models import save_tiny_scorer

    images, cells = pictures
    config = validate("score", ScoreConfig, {"scorer": SCORER | {"path": save_tiny_scorer(tmp_path / "scorer")}})
    for name in ("one.csv", "two.csv"):
        stage(config, RUNTIME, images, tmp_path / "references", tmp_path / "scores" / name)
    scores = read_scores(tmp_path / "scores" / "one.csv", cells)
    assert all(-1 <= value <= 1 for values in scores.values() for value in values.values())
    assert len({values["prompt_similarity"] for values in scores.values()}) == 4
    assert (tmp_path / "scores" / "one.csv").read_bytes() == (tmp_path / "scores" / "two.csv").read_bytes()


@pytest.mark.stage
def test_a_scorer_of_the_hub_scores_as_a_copy_of_it_and_is_checked(pictures, tmp_path):
    from tests.drawing.tiny_models import save_tiny_scorer

    images, _ = pictures
    folder = save_tiny_scorer(tmp_path / "scorer")
    pinned = SCORER | {"path": None, "repo": "owner/clip", "revision": COMMIT}

    def score(scorer, name):
        config = validate("score", ScoreConfig, {"scorer": scorer})
        stage(config, RUNTIME, images, tmp_path / "references", tmp_path / name)
        return (tmp_path / name).read_bytes()

    copy = score(SCORER | {"path": str(folder)}, "copy.csv")
    with reached(model_repository("owner/clip", folder), tmp_path / "cache") as patch:
        assert score(pinned, "online.csv") == copy
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert score(pinned, "offline.csv") == copy
    hub = model_repository("owner/clip", folder)
    with reached(hub, tmp_path / "another_cache"):
        hub.files["tokenizer.json"] = hub.files["tokenizer.json"][:-1] + b" "
        with pytest.raises(ValueError, match=r"^score\.scorer: owner/clip: tokenizer\.json: damaged on its way"):
            score(pinned, "damaged.csv")


@pytest.mark.stage
def test_a_scorer_that_cannot_be_had_is_one_line_that_names_its_setting(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    pinned = SCORER | {"path": None, "repo": "owner/clip", "revision": "a" * 40}
    config = validate("score", ScoreConfig, {"scorer": pinned})
    message = r"^score\.scorer: owner/clip at a+: not fetched from the hub: it is not in the local cache.*HF_HUB_OFFLINE$"
    with pytest.raises(ValueError, match=message):
        stage(config, RUNTIME, pictures[0], tmp_path / "references", tmp_path / "out.csv")


def test_nothing_to_compare_with_is_an_error(tmp_path):
    from tests.report.small_comparison import write_world

    images = write_world(tmp_path) / "images" / "theta0"
    config = validate("score", ScoreConfig, {"scorer": SCORER})
    with pytest.raises(FileNotFoundError, match="holds no PNG files"):
        stage(config, RUNTIME, images, tmp_path / "lora", tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("leaf", "values"),
    [
        ("scorer", {"scorer": SCORER | {"path": "no/such/folder"}}),
        ("scorer", {"scorer": SCORER | {"path": None, "repo": "owner/name", "revision": "main"}}),
        ("scorer.file", {"scorer": SCORER | {"file": "model.safetensors"}}),
        ("scorer.sha256", {"scorer": SCORER | {"sha256": "0" * 64}}),
    ],
)
def test_wrong_value_names_its_leaf(leaf, values):
    with pytest.raises(ParamsError, match=rf"score\.{leaf}"):
        validate("score", ScoreConfig, {"scorer": SCORER} | values)
