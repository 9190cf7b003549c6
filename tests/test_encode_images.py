"""The stage encode_images on tiny random models."""

import numpy as np
import pytest
from PIL import Image

from tests.training.running import RESOLUTION, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]

SIDE = RESOLUTION // 4  # of the tiny VAE's latents


def test_every_image_and_its_mirror_image_are_encoded(world, capsys):
    import torch

    from stages.encoding.encoded_files import read_encoded_images

    write_params(world)
    run_stage("encode_images", images="raw", vae="model/vae", out="plain.safetensors")
    assert "6 images at 32x32" in capsys.readouterr().out
    encoded = read_encoded_images(world / "plain.safetensors")
    assert encoded.file_names == [f"{number:04d}.png" for number in range(1, 7)]
    assert encoded.mean.shape == encoded.std.shape == (6, 2, 4, SIDE, SIDE)
    assert (encoded.std > 0).all()
    assert (encoded.resolution, encoded.shapes) == (RESOLUTION, None)

    (world / "mirrored").mkdir()
    for name in encoded.file_names:
        Image.open(world / "raw" / name).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(world / "mirrored" / name)
    run_stage("encode_images", images="mirrored", vae="model/vae", out="mirrored.safetensors")
    mirrored = read_encoded_images(world / "mirrored.safetensors")
    assert torch.equal(mirrored.mean, encoded.mean.flip(1))
    assert torch.equal(mirrored.std, encoded.std.flip(1))
    assert not torch.equal(mirrored.mean, encoded.mean)


def test_same_bytes_twice(world):
    write_params(world)
    for name in ("one.safetensors", "two.safetensors"):
        run_stage("encode_images", images="raw", vae="model/vae", out=name)
    assert (world / "one.safetensors").read_bytes() == (world / "two.safetensors").read_bytes()


def test_images_that_are_enlarged_are_named_and_noted(world, capsys):
    from stages.encoding.encoded_files import read_encoded_images

    write_params(world)
    (world / "small").mkdir()
    for name, side in (("fits.png", RESOLUTION), ("small.png", RESOLUTION // 2)):
        Image.fromarray(np.zeros((side, side, 3), dtype=np.uint8)).save(world / "small" / name)
    run_stage("encode_images", images="small", vae="model/vae", out="enlarged.safetensors")
    (problem,) = read_encoded_images(world / "enlarged.safetensors").problems
    assert problem == "1 image is smaller than it is trained at, and is enlarged, which blurs it: small.png (16x16)"
    assert f"warning: {problem}" in capsys.readouterr().err


def make_broken_inputs(world):
    (world / "empty").mkdir(exist_ok=True)
    (world / "broken").mkdir(exist_ok=True)
    (world / "broken/0001.png").write_bytes((world / "raw/0001.png").read_bytes()[:200])


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"images": "empty"}, {}, "empty: no .png images in it; run the stage download first"),
        ({"images": "broken"}, {}, "broken/0001.png: cannot be decoded as an image"),
        ({}, {"resolution": 0}, "encode_images.resolution: given 0"),
        ({}, {"interpolation": "nearest"}, "encode_images.interpolation: given 'nearest'"),
    ],
)
def test_wrong_inputs_are_one_line(world, capsys, options, settings, message):
    make_broken_inputs(world)
    write_params(world, encode_images=settings)
    with pytest.raises(SystemExit) as exit:
        run_stage("encode_images", **{"images": "raw", "vae": "model/vae"} | options, out="wrong.safetensors")
    assert exit.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"encode_images: error: {message}")
    assert not (world / "wrong.safetensors").exists()
