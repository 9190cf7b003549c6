import base64
import io

from PIL import Image

from stages.report.page_files import THUMBNAIL_SIZE, PageFiles


def picture_files(root):
    """A small PNG, a large one, and a large photograph that is not square."""
    (root / "drawn/a b").mkdir(parents=True)
    (root / "photos").mkdir()
    small, large, photo = root / "drawn/a b/0.png", root / "drawn/a b/1.png", root / "photos/2.jpg"
    Image.effect_noise((64, 64), 50).save(small)
    Image.effect_noise((600, 600), 50).save(large)
    Image.effect_noise((600, 300), 50).save(photo)
    return small, large, photo


def pages(root, single_file):
    return PageFiles({root / "drawn": "images", root / "photos": "dataset"}, [root / "drawn"], single_file)


def test_large_pictures_are_reduced_and_originals_lie_beside_the_page(tmp_path):
    small, large, photo = picture_files(tmp_path)
    files = pages(tmp_path, single_file=False)
    as_it_is, reduced, no_original = (files.picture(file) for file in (small, large, photo))
    assert as_it_is.shown == as_it_is.original == "images/a%20b/0.png"
    assert (reduced.shown, reduced.original) == ("thumbnails/images/a%20b/1.png.webp", "images/a%20b/1.png")
    assert (no_original.shown, no_original.original) == ("thumbnails/dataset/2.jpg.webp", None)
    assert (no_original.width, no_original.height) == (256, 128)
    files.write(tmp_path / "page")
    written = {path.relative_to(tmp_path / "page").as_posix() for path in (tmp_path / "page").rglob("*.*")}
    assert written == {
        "images/a b/0.png",
        "images/a b/1.png",
        "thumbnails/images/a b/1.png.webp",
        "thumbnails/dataset/2.jpg.webp",
    }
    assert (tmp_path / "page/images/a b/1.png").read_bytes() == large.read_bytes()
    with Image.open(tmp_path / "page/thumbnails/dataset/2.jpg.webp") as thumbnail:
        assert thumbnail.size == (THUMBNAIL_SIZE, THUMBNAIL_SIZE // 2)


def test_a_single_file_holds_them_reduced_and_writes_nothing(tmp_path):
    files = pages(tmp_path, single_file=True)
    for file in picture_files(tmp_path):
        picture = files.picture(file)
        assert picture.original is None
        head, _, content = picture.shown.partition(";base64,")
        assert head == ("data:image/png" if file.name == "0.png" else "data:image/webp")
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.size == (picture.width, picture.height)
    files.write(tmp_path / "page")
    assert not (tmp_path / "page").exists()
