import numpy as np
import pytest
import torch
from PIL import Image

from stages.encoding.latents import encode_images, encode_masks, load_image, load_mask, load_vae
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


def save_mask(path, pixels):
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(path)
    return path


def test_a_pixel_of_the_latents_has_the_mean_of_the_mask_over_what_it_covers(tmp_path):
    mask = save_mask(tmp_path / "m.png", [[255, 255, 0, 0], [255, 255, 0, 255]])
    assert load_mask(mask, (4, 2), 2).tolist() == [[1.0, 0.25]]


def test_a_mask_is_resized_and_cropped_with_its_image(tmp_path):
    """A picture that is white where its mask is: brought to size alike, they still say the same."""
    pixels = np.zeros((40, 60), dtype=np.uint8)
    pixels[10:30, 5:33] = 255
    mask = save_mask(tmp_path / "m.png", pixels)
    picture = load_image(mask, (32, 32), "bilinear")
    found = load_mask(mask, (32, 32), 8)
    expected = ((picture[0] + 1) / 2).view(4, 8, 4, 8).mean(dim=(1, 3))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert 0.2 < float(found.mean()) < 0.6


def test_an_image_without_a_mask_is_all_subject_and_without_any_there_is_none(tmp_path):
    mask = save_mask(tmp_path / "m.png", np.zeros((8, 16)))
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    assert encode_masks({a: None, b: None}, {a: (8, 8), b: (8, 8)}, 8) is None
    found = encode_masks({a: None, b: mask}, {a: (8, 8), b: (16, 8)}, 8)
    assert found is not None
    assert found.tolist() == [[1.0, 0.0], [0.0, 0.0]]  # one pixel and padding; two pixels
