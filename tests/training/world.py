"""Folders with images, captions and a tiny random model, in which the stages run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.running import RESOLUTION, run_stage, write_params


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with images, captions and a model, in which the stages run."""
    from tests.drawing.tiny_models import save_tiny_checkpoint

    root = tmp_path_factory.mktemp("world")
    save_tiny_checkpoint(root / "model")
    (root / "raw").mkdir()
    (root / "no-class-images").mkdir()
    random = np.random.default_rng(0)
    names = [f"{number:04d}.png" for number in range(1, 7)]
    for name in names:
        Image.fromarray(random.integers(0, 256, (RESOLUTION, RESOLUTION + 8, 3), dtype=np.uint8)).save(root / "raw" / name)
    dataset = root / "dataset"
    dataset.mkdir()
    for name in names:
        (dataset / name).write_bytes((root / "raw" / name).read_bytes())
    captions = [f"a portrait, {letter}" for letter in "abcde"] + ["a " * 90]
    rows = "".join(f'{name},"{caption}"\n' for name, caption in zip(names, captions, strict=True))
    (dataset / "metadata.csv").write_text("file_name,caption\n" + rows)
    return root


@pytest.fixture
def in_the_world(world, monkeypatch) -> None:
    """The stages run in the world; for modules that ask for it."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("DVC_ROOT", str(world))


@pytest.fixture
def encoded(world, in_the_world) -> Path:
    """The world with its images and captions encoded."""
    write_params(world)
    if not (world / "images.safetensors").exists():
        run_stage("encode_images", images="raw", vae="model/vae", out="images.safetensors")
        run_stage("encode_captions", dataset="dataset", model="model", out="captions.safetensors")
    return world


@pytest.fixture(scope="module")
def mixed(world) -> Path:
    """Wide, square and upright images, encoded each in its shape, and captions for them."""
    random = np.random.default_rng(1)
    for folder in ("mixed", "mixed-dataset"):
        (world / folder).mkdir()
    for number, (width, height) in enumerate([(120, 40), (96, 32), (70, 70), (64, 64), (64, 70), (32, 96), (192, 64)], start=1):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for folder in ("mixed", "mixed-dataset"):
            image.save(world / folder / f"{number:04d}.png")
    rows = "".join(f"{number:04d}.png,a portrait {number}\n" for number in range(1, 8))
    (world / "mixed-dataset/metadata.csv").write_text("file_name,caption\n" + rows)
    return world
