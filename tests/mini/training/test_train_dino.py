"""The small DINOv2: what it is trained to do, and the files that the pipeline loads it from."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.drawing.embeddings import embed_image, load_dino
from stages.drawing.preprocessing import read_preprocessing
from stages.mini.drawings import draw_sets
from stages.mini.drawings.labelled import LABELS
from stages.mini.evaluation import evaluate
from stages.mini.training import train_dino, train_judge
from stages.mini.training.train_dino import TEMPERATURE, Training, build, view

CPU = torch.device("cpu")


@pytest.mark.stage
def test_it_is_trained_measured_and_loaded_as_the_pipeline_loads_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_dino.main(["--work", str(work), "--tiny", "--steps", "2", "--threads", "1", "--out", str(work / "dino")])
    figures = json.loads((work / "dino.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert set(figures) == set(LABELS)
    assert all(0 <= share <= 1 for share in figures.values())
    assert not list(work.glob("*.pt")), "a finished training leaves no checkpoint that a later one would go on with"

    weights = load_file(work / "dino" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert not any(name.startswith("projection") for name in weights), "the head of the training is left out"
    config = json.loads((work / "dino" / "config.json").read_text())
    assert (config["model_type"], config["image_size"], config["patch_size"]) == ("dinov2", 64, 8)

    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (64, 64), colour).save(work / f"{name}.png")
    dino = load_dino(work / "dino", CPU, torch.float32)
    red, blue = (embed_image(dino, work / f"{name}.png") for name in ("red", "blue"))
    assert red.shape == (config["hidden_size"],)
    assert float(red.norm()) == pytest.approx(1, abs=1e-5)
    assert not torch.equal(red, blue)


@pytest.mark.stage
def test_it_is_measured_by_whom_it_tells_the_subject_from(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--work", str(work), "--tiny", "--steps", "1", "--threads", "1"]
    train_dino.main([*options, "--out", str(work / "dino")])
    train_judge.main([*options, "--out", str(work / "judge")])
    draw_sets.write_image_set("adventurer", draw_sets.SUBJECT, range(16), work / "asuka")
    metrics = work / "dino-metrics.json"
    options = ["--mini", str(work), "--metrics", str(metrics), "--samples", "20", "--threads", "1"]
    evaluate.main([*options, "--only", "dino"])
    figures = json.loads(metrics.read_text())["dino"]
    assert set(figures["neighbours_alike"]) == set(LABELS)
    assert set(figures["told_apart_from"]) == {"her_style", "her_style_and_colour", "her_tails_in_other_colours"}
    assert all(0 <= chance <= 1 for chance in figures["told_apart_from"].values())
    assert "DINOv2: her from other twin tails" in capsys.readouterr().out


@pytest.mark.stage
def test_another_run_of_so_many_steps_gives_the_same_bytes(work: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        train_dino.main(["--work", str(work), "--tiny", "--steps", "2", "--threads", "1", "--out", str(tmp_path / name)])
    files = [sorted(path for path in (tmp_path / name).iterdir()) for name in ("one", "other")]
    assert [path.name for path in files[0]] == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_its_images_are_taken_as_it_was_trained_on_them(tmp_path: Path) -> None:
    train_dino.image_processor().save_pretrained(tmp_path)
    pixels = read_preprocessing(tmp_path)(Image.new("RGB", (64, 64), (0, 255, 51)))
    assert pixels.shape == (3, 64, 64)
    assert [float(pixels[channel, 5, 9]) for channel in range(3)] == pytest.approx([-1, 1, -0.6], abs=1e-6)


class Placed(nn.Module):
    """Puts the views where they are wanted, whatever they show."""

    def __init__(self, places: list[list[float]]) -> None:
        super().__init__()
        self.places = torch.tensor(places, dtype=torch.float32)

    def forward(self, _: Tensor) -> Tensor:
        return self.places


@pytest.mark.parametrize(
    ("places", "loss"),
    [
        # Both views of a drawing in one place, and at right angles to the other's: exp(1 / T) against two of exp(0).
        ([[1, 0], [0, 1], [1, 0], [0, 1]], math.log(1 + 2 * math.exp(-1 / TEMPERATURE))),
        # Every view in the place of the other drawing's.
        ([[1, 0], [0, 1], [0, 1], [1, 0]], math.log(2 + math.exp(1 / TEMPERATURE))),
        # All in one place: any of the three others may be the one.
        ([[3, 0], [1, 0], [2, 0], [5, 0]], math.log(3)),
        # One drawing: there is nothing to tell it from.
        ([[1, 0], [0, 1]], 0),
    ],
)
def test_views_of_one_drawing_are_drawn_together_and_others_apart(places: list[list[float]], loss: float) -> None:
    training = Training(build(1))
    training.projection = Placed(places)  # pyright: ignore[reportAttributeAccessIssue]
    assert float(training(torch.zeros(len(places), 3, 64, 64))) == pytest.approx(loss, abs=1e-5)


def test_a_view_depends_on_the_seed_alone_and_is_another_each_time() -> None:
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(3)
    one, other = view(images), view(images)
    torch.manual_seed(3)
    assert torch.equal(view(images), one)
    assert one.shape == images.shape
    assert -1 <= float(one.min()) <= float(one.max()) <= 1
    assert not any(torch.equal(before, after) for before, after in zip(one, other, strict=True))
