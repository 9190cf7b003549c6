"""The stage encode_images on tiny random models."""

import pytest
from PIL import Image

from tests.training.running import RESOLUTION, run_stage, write_params
from tests.training.world import NAMES, write_raw

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]

SIDE = RESOLUTION // 4  # of the tiny VAE's latents


def test_every_image_and_its_mirror_image_are_encoded(world, capsys):
    import torch

    from stages.encoding.encoded_files import read_encoded_images

    write_params(world)
    run_stage("encode_images", images="raw", vae="model/vae", out="plain.safetensors")
    assert "6 images at 32x32" in capsys.readouterr().out
    encoded = read_encoded_images(world / "plain.safetensors")
    assert encoded.file_names == NAMES
    assert encoded.mean.shape == encoded.std.shape == (6, 2, 4, SIDE, SIDE)
    assert (encoded.std > 0).all()
    assert (encoded.resolution, encoded.shapes) == (RESOLUTION, None)

    images = {name: Image.open(world / "raw" / name).transpose(Image.Transpose.FLIP_LEFT_RIGHT) for name in NAMES}
    write_raw(world / "mirrored", images)
    run_stage("encode_images", images="mirrored", vae="model/vae", out="mirrored.safetensors")
    mirrored = read_encoded_images(world / "mirrored.safetensors")
    assert torch.equal(mirrored.mean, encoded.mean.flip(1))
    assert torch.equal(mirrored.std, encoded.std.flip(1))
    assert not torch.equal(mirrored.mean, encoded.mean)


def test_held_out_images_are_noted_and_encoded_like_the_others(world):
    import torch

    from stages.encoding.encoded_files import read_encoded_images

    write_params(world)
    images = {name: Image.open(world / "raw" / name) for name in NAMES}
    write_raw(world / "split", images, held_out=["0005.png", "0002.png"])
    for folder in ("raw", "split"):
        run_stage("encode_images", images=folder, vae="model/vae", out=f"of-{folder}.safetensors")
    whole, split = (read_encoded_images(world / f"of-{folder}.safetensors") for folder in ("raw", "split"))
    assert list(whole.held_out) == []
    assert list(split.held_out) == ["0002.png", "0005.png"]
    assert split.file_names == whole.file_names == NAMES
    assert torch.equal(split.mean, whole.mean)
    assert torch.equal(split.std, whole.std)


def test_the_manifest_says_which_images_there_are(world):
    from stages.encoding.encoded_files import read_encoded_images

    write_params(world)
    images = {name: Image.open(world / "raw" / name) for name in NAMES}
    write_raw(world / "listed", {name: images[name] for name in ("0003.png", "0001.png")})
    images["0002.png"].save(world / "listed/0002.png")
    run_stage("encode_images", images="listed", vae="model/vae", out="listed.safetensors")
    assert read_encoded_images(world / "listed.safetensors").file_names == ["0003.png", "0001.png"]


def test_same_bytes_twice(world):
    write_params(world)
    for name in ("one.safetensors", "two.safetensors"):
        run_stage("encode_images", images="raw", vae="model/vae", out=name)
    assert (world / "one.safetensors").read_bytes() == (world / "two.safetensors").read_bytes()


def test_images_that_are_enlarged_are_named_and_noted(world, capsys):
    from stages.encoding.encoded_files import read_encoded_images

    write_params(world)
    sides = {"fits.png": RESOLUTION, "small.png": RESOLUTION // 2}
    write_raw(world / "small", {name: Image.new("RGB", (side, side)) for name, side in sides.items()})
    run_stage("encode_images", images="small", vae="model/vae", out="enlarged.safetensors")
    (problem,) = read_encoded_images(world / "enlarged.safetensors").problems
    assert problem == "1 image is smaller than it is trained at, and is enlarged, which blurs it: small.png (16x16)"
    assert f"warning: {problem}" in capsys.readouterr().err


def make_broken_inputs(world):
    if (world / "unlisted").exists():
        return
    (world / "unlisted").mkdir()
    write_raw(world / "empty", {})
    for name in ("broken", "gone", "unsplit"):
        write_raw(world / name, {"0001.png": Image.open(world / "raw/0001.png")})
    (world / "broken/0001.png").write_bytes((world / "raw/0001.png").read_bytes()[:200])
    (world / "gone/0001.png").unlink()
    manifest = world / "unsplit/manifest.csv"
    manifest.write_text(manifest.read_text().replace(",train", ",validation"))


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"images": "unlisted"}, {}, "no such file: unlisted/manifest.csv"),
        ({"images": "empty"}, {}, "empty: no images in it; run the stage download first"),
        ({"images": "gone"}, {}, "gone/manifest.csv names 0001.png, which is not there"),
        ({"images": "unsplit"}, {}, "unsplit/manifest.csv: 'validation' is no split; it says train or test"),
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
