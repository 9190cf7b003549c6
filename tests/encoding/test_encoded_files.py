from dataclasses import replace

import pytest
import torch

from stages.encoding.encoded_files import (
    read_encoded_captions,
    read_encoded_images,
    write_encoded,
)
from tests.encoding.small_encodings import make_captions, make_images


def test_round_trip_and_same_bytes(tmp_path):
    images, captions = make_images("ab"), make_captions("ba")
    for name in ("one", "two"):
        write_encoded(images, tmp_path / f"images-{name}")
        write_encoded(captions, tmp_path / f"captions-{name}")
    assert (tmp_path / "images-one").read_bytes() == (tmp_path / "images-two").read_bytes()
    assert (tmp_path / "captions-one").read_bytes() == (tmp_path / "captions-two").read_bytes()
    back = read_encoded_images(tmp_path / "images-one")
    assert (back.file_names, back.scaling_factor, back.resolution) == (["a", "b"], 0.18215, 64)
    assert torch.equal(back.mean, images.mean)
    assert list(back.held_out) == []
    back = read_encoded_captions(tmp_path / "captions-one")
    assert (back.captions, back.clip_skip) == (["caption of b", "caption of a"], 1)


def test_names_of_held_out_images_come_back(tmp_path):
    write_encoded(replace(make_images("abc"), held_out=("c", "a")), tmp_path / "images")
    back = read_encoded_images(tmp_path / "images")
    assert (back.file_names, list(back.held_out)) == (["a", "b", "c"], ["c", "a"])


def test_other_files_are_refused(tmp_path):
    write_encoded(make_images("ab"), tmp_path / "images")
    (tmp_path / "text").write_text("no safetensors")
    for name in ("images", "text"):
        with pytest.raises(ValueError, match=f"{name}: not a file of encoded captions"):
            read_encoded_captions(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_encoded_images(tmp_path / "nothing")
