import numpy as np
import pytest
import torch
from PIL import Image

from stages.encoding.latents import encode_images, load_image, load_vae
from tests.drawing.tiny_models import save_tiny_checkpoint


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return load_vae(save_tiny_checkpoint(tmp_path_factory.mktemp("model")) / "vae", torch.device("cpu"))


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / "0001.png"
    Image.fromarray(pixels).save(path)
    return path


def test_image_of_the_right_size_is_only_scaled(tmp_path):
    pixels = np.array([[[0, 127, 255], [255, 0, 0]], [[1, 2, 3], [10, 20, 30]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    image = load_image(tmp_path / "small.png", (2, 2), "lanczos")
    np.testing.assert_allclose(image.numpy(), pixels.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_shorter_side_is_resized_and_the_middle_cropped(picture):
    image = load_image(picture, (32, 32), "bilinear")
    whole = Image.open(picture).resize((48, 32), Image.Resampling.BILINEAR)
    middle = np.asarray(whole)[:, 8:40].transpose(2, 0, 1) / 127.5 - 1
    assert image.shape == (3, 32, 32)
    np.testing.assert_allclose(image.numpy(), middle, atol=1e-6)


def test_broken_image_is_named(tmp_path):
    (tmp_path / "0007.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(OSError, match=r"0007\.png: cannot be decoded"):
        load_image(tmp_path / "0007.png", (32, 32), "lanczos")


def test_posterior_of_image_and_mirror_image(vae, picture):
    mean, std = encode_images(vae, [picture, picture], (32, 32), "lanczos", batch_size=1)
    assert mean.shape == std.shape == (2, 2, 4, 8, 8)
    image = load_image(picture, (32, 32), "lanczos")[None]
    for index, view in enumerate((image, image.flip(3))):
        with torch.no_grad():
            posterior = vae.encode(view).latent_dist
        torch.testing.assert_close(mean[1, index], posterior.mean[0])
        torch.testing.assert_close(std[1, index], posterior.std[0])
    assert not torch.equal(mean[0, 0], mean[0, 1])


def test_nan_of_the_vae_names_the_image(vae, picture):
    weight = vae.quant_conv.bias
    kept = weight.data.clone()
    weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"0001\.png: the VAE makes NaN"):
        encode_images(vae, [picture], (32, 32), "lanczos", batch_size=4)
    weight.data = kept
