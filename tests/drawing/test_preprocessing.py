import json

import numpy as np
import pytest
from PIL import Image
from transformers import BitImageProcessorPil, CLIPImageProcessorPil

from stages.drawing.preprocessing import read_preprocessing

SIDES = {"height": 24, "width": 24}
PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=SIDES),
    "dino": BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SIDES, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(24, 24), (50, 31), (31, 50), (200, 97), (16, 20)])
def test_images_are_prepared_as_transformers_does(tmp_path, name, size):
    """Against the library's own processors for Pillow, also for sides that come out between two pixels."""
    PROCESSORS[name].save_pretrained(tmp_path)
    image = Image.effect_noise(size, 90).convert("RGB")
    expected = PROCESSORS[name](image, return_tensors="np").pixel_values[0]
    found = read_preprocessing(tmp_path)(image)
    assert found.dtype == np.float32
    assert found.shape == (3, 24, 24)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_grey_and_transparent_images_are_made_rgb(tmp_path):
    PROCESSORS["clip"].save_pretrained(tmp_path)
    prepared = read_preprocessing(tmp_path)
    grey = prepared(Image.new("L", (24, 24), 128))
    assert np.array_equal(grey, prepared(Image.new("RGB", (24, 24), (128, 128, 128))))


def test_a_size_of_one_number_is_the_shorter_side(tmp_path):
    """As the file of openai/clip-vit-base-patch32 has it."""
    PROCESSORS["clip"].save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    image = Image.effect_noise((50, 31), 90).convert("RGB")
    expected = read_preprocessing(tmp_path)(image)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": 24, "crop_size": 24}))
    assert np.array_equal(read_preprocessing(tmp_path)(image), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"do_resize": False}, "do_resize is false"), ({"size": {}}, "cannot be read"), ({"image_mean": None}, "cannot be read")],
)
def test_settings_that_cannot_be_followed_are_refused(tmp_path, changes, message):
    PROCESSORS["clip"].save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: .*{message}"):
        read_preprocessing(tmp_path)


def test_missing_settings_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json: missing"):
        read_preprocessing(tmp_path)
