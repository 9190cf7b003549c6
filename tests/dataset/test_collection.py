import hashlib
from dataclasses import replace

import pytest
from PIL import Image

from stages.dataset.candidates import Candidate
from stages.dataset.collection import collect
from stages.dataset.images import RefusedImageError
from stages.dataset.metadata import read_manifest
from tests.dataset.pictures import encoded, noise
from tests.dataset.settings import collection


def candidate(name: str, data: bytes) -> Candidate:
    return Candidate(name, f"source of {name}", "CC0", None, lambda: data)


PICTURES = [candidate(f"{seed}.png", encoded(noise(seed))) for seed in range(3)]
BROKEN = candidate("broken.png", encoded(noise(9))[:99])
SMALL = candidate("small.png", encoded(noise(9, (7, 9))))


def test_files_are_numbered_in_order_and_the_manifest_says_what_they_are(tmp_path):
    rows = collect(PICTURES, tmp_path, collection())
    assert [row.file_name for row in rows] == ["0001.png", "0002.png", "0003.png"]
    assert read_manifest(tmp_path) == rows
    second = rows[1]
    assert second.sha256 == hashlib.sha256((tmp_path / "0002.png").read_bytes()).hexdigest()
    assert second.source_sha256 == hashlib.sha256(PICTURES[1].read()).hexdigest()
    assert (second.source, second.licence, second.width, second.height) == ("source of 1.png", "CC0", 20, 16)
    with Image.open(tmp_path / "0002.png") as image:
        assert image.tobytes() == noise(1).tobytes()


def test_two_runs_write_the_same_bytes(tmp_path):
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        collect(PICTURES, tmp_path / name, collection())
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert len(written[0]) == 4


def test_the_same_picture_in_another_file_is_left_out_and_named(tmp_path, capsys):
    twin = candidate("twin.bmp", encoded(noise(0), "BMP"))
    rows = collect([*PICTURES, twin, PICTURES[2]], tmp_path, collection())
    assert len(rows) == 3
    assert "skipped twin.bmp: shows the same as 0.png" in capsys.readouterr().err


def test_captions_come_along_and_that_of_a_copy_is_not_lost_unheard(tmp_path, capsys):
    plain, copy = PICTURES[0], replace(PICTURES[0], name="copy.png", caption="asuka")
    other = replace(copy, name="other.png", caption="someone else")
    rows = collect([plain, PICTURES[1], copy, other], tmp_path, collection())
    assert [row.caption for row in rows] == ["asuka", ""]
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    assert first == "skipped copy.png: shows the same as 0.png"
    assert second.endswith("shows the same as 0.png, and its caption is another, which is not used: someone else")


@pytest.mark.parametrize(("bad", "reason"), [(BROKEN, "cannot be decoded"), (SMALL, "min_size is 8")])
def test_a_bad_image_fails_or_is_skipped_by_name(tmp_path, capsys, bad, reason):
    with pytest.raises(RefusedImageError, match=rf"{bad.name}.*{reason}.*on_bad=skip"):
        collect([PICTURES[0], bad, PICTURES[1]], tmp_path, collection())
    rows = collect([PICTURES[0], bad, PICTURES[1]], tmp_path, collection(on_bad="skip"))
    assert [row.source for row in rows] == ["source of 0.png", "source of 1.png"]
    assert f"skipped {bad.name}" in capsys.readouterr().err


def test_fewer_usable_images_than_wanted_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^1 of 2 images can be used; download\.min_images is 2: add images"):
        collect([PICTURES[0], SMALL], tmp_path, collection(on_bad="skip", min_images=2))


def test_candidates_after_the_last_wanted_one_are_not_read(tmp_path):
    rows = collect([*PICTURES[:2], BROKEN], tmp_path, collection(max_images=2))
    assert len(rows) == 2


def test_names_have_digits_enough_to_sort_by(tmp_path):
    many = [candidate(f"{value}", encoded(Image.new("RGB", (8, 8), (value % 256, value // 256, 0)))) for value in range(10_000)]
    rows = collect(many, tmp_path, collection(max_images=1))
    assert rows[0].file_name == "00001.png"
