from pathlib import Path

import pytest
from PIL import Image, ImageOps

from stages.dataset.candidates import folder_candidates
from stages.dataset.collection import collect
from stages.dataset.images import RefusedImageError, decode_mask
from stages.dataset.masks import find_masks, without_masks
from stages.dataset.metadata import read_manifest
from tests.dataset.pictures import encoded, noise, save_noise
from tests.dataset.settings import collection, folder_source

SIZE = (20, 16)


def left_half(size: tuple[int, int] = SIZE, mode: str = "L") -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask.convert(mode)


def save_masks(folder: Path, *names: str, size: tuple[int, int] = SIZE) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        left_half(size).save(folder / name)
    return folder


def collected(source: Path, out: Path, masks: Path | None = None, **settings):
    out.mkdir()
    return collect(folder_candidates(folder_source(source, masks)), out, collection(**settings))


def mask_of(out: Path, name: str) -> Image.Image:
    with Image.open(out / "masks" / name) as mask:
        mask.load()
        return mask


def test_a_mask_has_its_images_name_with_any_suffix(tmp_path, capsys):
    images = {name: Path(name) for name in ("a.jpg", "cats/b.png", "c.png")}
    folder = save_masks(tmp_path, "a.png", "cats/b-masklabel.webp", "stranger.png")
    found = find_masks(images, folder)
    assert {name: path.relative_to(folder).as_posix() for name, path in found.items()} == {
        "a.jpg": "a.png",
        "cats/b.png": "cats/b-masklabel.webp",
    }
    said = capsys.readouterr().err
    assert "masks that bear no image's name are not used (1): stranger.png" in said
    assert "images without a mask, of which all counts (1): c.png" in said


def test_a_folder_in_which_nothing_is_the_mask_of_an_image_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"download\.source\.masks: .* holds no mask of an image: that of a\.jpg is called a\.jpg"
    ):
        find_masks({"a.jpg": Path("a.jpg")}, save_masks(tmp_path, "b.png"))


@pytest.mark.parametrize("inside", ["masks", "."], ids=["a folder in the folder", "beside the images"])
def test_masks_that_lie_among_the_images_are_no_images(tmp_path, inside):
    source = save_noise(tmp_path / "mine", "a.png", "b.png")
    save_masks(source / inside, "a-masklabel.png", "b-masklabel.png")
    rows = collected(source, tmp_path / "raw", source / inside)
    assert [row.source for row in rows] == ["mine/a.png", "mine/b.png"]
    assert all(row.mask_sha256 for row in rows)
    assert without_masks({"x": tmp_path / "x"}, source) == {"x": tmp_path / "x"}


def test_masks_come_under_the_names_of_the_images_and_into_the_manifest(tmp_path):
    source = save_noise(tmp_path / "mine", "b.png", "a.png")
    rows = collected(source, tmp_path / "raw", save_masks(tmp_path / "masks", "b.png"))
    assert [bool(row.mask_sha256) for row in rows] == [False, True]
    assert mask_of(tmp_path / "raw", "0002.png").tobytes() == left_half().tobytes()
    assert read_manifest(tmp_path / "raw") == rows
    (tmp_path / "raw/masks/0002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"speaks of the mask of 0002\.png"):
        read_manifest(tmp_path / "raw")


def test_without_masks_the_manifest_has_no_word_of_them(tmp_path):
    collected(save_noise(tmp_path / "mine", "a.png"), tmp_path / "raw")
    assert (tmp_path / "raw/manifest.csv").read_text().partition("\n")[0].endswith(",split")
    assert not (tmp_path / "raw/masks").exists()


def test_what_is_transparent_is_masked_where_that_is_asked_for(tmp_path):
    picture = noise(1)
    picture.putalpha(left_half())
    (tmp_path / "mine").mkdir()
    picture.save(tmp_path / "mine/a.png")
    save_noise(tmp_path / "mine", "b.png")
    assert not any(row.mask_sha256 for row in collected(tmp_path / "mine", tmp_path / "off"))
    rows = collected(tmp_path / "mine", tmp_path / "on", alpha_mask=True)
    assert [bool(row.mask_sha256) for row in rows] == [True, False]
    assert mask_of(tmp_path / "on", "0001.png").tobytes() == left_half().tobytes()
    assert rows[0].sha256 == read_manifest(tmp_path / "off")[0].sha256


def test_a_mask_of_the_source_comes_before_transparency(tmp_path):
    picture = noise(1)
    picture.putalpha(left_half())
    (tmp_path / "mine").mkdir()
    picture.save(tmp_path / "mine/a.png")
    (tmp_path / "masks").mkdir()
    ImageOps.invert(left_half()).save(tmp_path / "masks/a.png")
    collected(tmp_path / "mine", tmp_path / "raw", tmp_path / "masks", alpha_mask=True)
    assert mask_of(tmp_path / "raw", "0001.png").tobytes() == ImageOps.invert(left_half()).tobytes()


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P"])
def test_masks_of_any_kind_say_the_same(mode):
    assert decode_mask(encoded(left_half(mode=mode)), SIZE, 10_000).tobytes() == left_half().tobytes()


def test_what_is_transparent_in_a_mask_is_black():
    mask = Image.new("RGBA", SIZE, "white")
    mask.putalpha(left_half())
    assert decode_mask(encoded(mask), SIZE, 10_000).tobytes() == left_half().tobytes()


def test_a_mask_of_another_size_and_the_same_shape_is_resized():
    assert decode_mask(encoded(left_half((41, 32))), SIZE, 10_000).size == SIZE


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (left_half((32, 16)), "is 32x16, and its picture 20x16: give it the same shape"),
        (Image.new("L", SIZE, 1), "is black, its highest value is 1 of 255: the subject has to be white"),
        (Image.new("I;16", SIZE, 255), "has pixels of mode I;16; convert it to 8 bits a channel"),
    ],
    ids=["another shape", "numbers of labels", "16 bits"],
)
def test_a_mask_that_cannot_be_meant_is_refused_by_the_name_of_its_image(tmp_path, mask, message):
    with pytest.raises(RefusedImageError, match=message):
        decode_mask(encoded(mask), SIZE, 10_000)
    source = save_noise(tmp_path / "mine", "a.png")
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks/a.png")
    with pytest.raises(RefusedImageError, match=rf"a\.png: its mask {message}; remove it, or set download\.on_bad=skip"):
        collected(source, tmp_path / "raw", tmp_path / "masks")


def test_an_image_that_is_all_transparent_has_nothing_to_learn_from(tmp_path):
    (tmp_path / "mine").mkdir()
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "mine/a.png")
    with pytest.raises(RefusedImageError, match=r"a\.png: is all transparent"):
        collected(tmp_path / "mine", tmp_path / "raw", alpha_mask=True)
