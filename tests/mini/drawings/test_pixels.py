import numpy as np
import pytest
import torch
from PIL import Image

from stages.mini.drawings.pixels import read_images, to_bytes, to_tensor


def test_bytes_become_floats_and_bytes_again():
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = to_tensor(images)
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(to_bytes(tensor), images)
    assert to_bytes(torch.full((1, 3, 1, 1), 1.5)).tolist() == [[[[255] * 3]]]


def test_pictures_of_another_size_are_brought_to_the_judges(tmp_path):
    Image.new("RGB", (128, 128), (255, 0, 0)).save(tmp_path / "large.png")
    images = read_images([tmp_path / "large.png"])
    assert images.shape == (1, 64, 64, 3)
    assert images[0, 5, 5].tolist() == [255, 0, 0]
    with pytest.raises(ValueError, match="no picture"):
        read_images([])
