"""Folders with images, captions and a tiny random model, in which the stages run."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.dataset.metadata import TEST, TRAIN, ManifestRow, write_captions, write_manifest
from tests.training.running import RESOLUTION, run_stage, write_params

NAMES = [f"{number:04d}.png" for number in range(1, 7)]
HELD_OUT = ("0002.png", "0005.png")


def write_raw(folder: Path, images: Mapping[str, Image.Image], held_out: Collection[str] = ()) -> None:
    """Images with their manifest, as the stage download writes them."""
    folder.mkdir()
    rows = []
    for name, image in images.items():
        image.save(folder / name)
        split = TEST if name in held_out else TRAIN
        rows.append(ManifestRow(name, f"mine/{name}", "", "", "", image.width, image.height, split))
    write_manifest(folder, rows)


def write_dataset(folder: Path, raw: Path, captions: Mapping[str, str], held_out: Collection[str] = ()) -> None:
    """The images of `raw` with captions, as the stage caption writes them."""
    for split, names in ((TRAIN, [name for name in captions if name not in held_out]), (TEST, held_out)):
        if not names:
            continue
        (folder / split).mkdir(parents=True)
        for name in names:
            (folder / split / name).write_bytes((raw / name).read_bytes())
        write_captions(folder / split, {name: captions[name] for name in names})


def noise(sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[Image.Image]:
    """Random images of these widths and heights."""
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with images, captions and a model, in which the stages run."""
    from tests.drawing.tiny_models import save_tiny_checkpoint

    root = tmp_path_factory.mktemp("world")
    save_tiny_checkpoint(root / "model")
    (root / "no-class-images").mkdir()
    write_raw(root / "raw", dict(zip(NAMES, noise([(RESOLUTION + 8, RESOLUTION)] * 6), strict=True)))
    texts = [*(f"a portrait, {letter}" for letter in "abcde"), "a " * 90]
    write_dataset(root / "dataset", root / "raw", dict(zip(NAMES, texts, strict=True)))
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


@pytest.fixture
def held_out(encoded) -> Path:
    """The world with its images encoded once more, as images-held-out.safetensors: two of them are held out."""
    if not (encoded / "raw-held-out").exists():
        images = {name: Image.open(encoded / "raw" / name) for name in NAMES}
        write_raw(encoded / "raw-held-out", images, HELD_OUT)
        run_stage("encode_images", images="raw-held-out", vae="model/vae", out="images-held-out.safetensors")
    return encoded


@pytest.fixture(scope="module")
def mixed(world) -> Path:
    """Wide, square and upright images, of which a wide and a square one are held out, and captions for them."""
    sizes = [(120, 40), (96, 32), (70, 70), (64, 64), (64, 70), (32, 96), (192, 64)]
    images = {f"{number:04d}.png": image for number, image in enumerate(noise(sizes, seed=1), start=1)}
    held_out = ("0004.png", "0007.png")
    write_raw(world / "mixed", images, held_out)
    captions = {name: f"a portrait {number}" for number, name in enumerate(images, start=1)}
    write_dataset(world / "mixed-dataset", world / "mixed", captions, held_out)
    return world
