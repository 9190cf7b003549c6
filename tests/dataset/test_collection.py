import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from stages.dataset.candidates import Candidate
from stages.dataset.collection import choose_held_out, collect
from stages.dataset.images import RefusedImageError
from stages.dataset.metadata import TEST, TRAIN, ManifestRow, read_manifest
from stages.dataset.own_captions import ImageSet
from tests.dataset.pictures import encoded, noise
from tests.dataset.settings import collection


def candidate(name: str, data: bytes) -> Candidate:
    return Candidate(name, f"source of {name}", "CC0", None, lambda: data)


PICTURES = [candidate(f"{seed}.png", encoded(noise(seed))) for seed in range(3)]
EIGHT = [candidate(f"{seed}.png", encoded(noise(seed))) for seed in range(8)]
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
    assert len(written[0]) == 5


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


def shown(folder: Path, rows: Sequence[ManifestRow], split: str) -> set[bytes]:
    """The pixels of the images of a split."""
    found = set()
    for row in rows:
        if row.split == split:
            with Image.open(folder / row.file_name) as image:
                found.add(image.tobytes())
    return found


def held_out_of(candidates: Sequence[Candidate], folder: Path, count: int = 3) -> set[bytes]:
    """What the held-out images of a collection show."""
    folder.mkdir()
    return shown(folder, collect(candidates, folder, collection(held_out_images=count)), TEST)


def test_the_lowest_digests_are_held_out():
    assert choose_held_out(["d", "a", "c", "b"], 2) == choose_held_out(["b", "c", "d", "a"], 2) == {"a", "b"}
    assert choose_held_out(["d", "a", "c", "b", "aa"], 2) == {"a", "aa"}
    assert choose_held_out(["d", "a", "c", "b", "bb"], 2) == {"a", "b"}
    assert choose_held_out(["d", "a"], 0) == choose_held_out([], 0) == set()


def test_of_several_sets_each_gives_its_share_and_none_its_last_image():
    digests, sets = ["a1", "a2", "a3", "a4", "b1", "b2", "c1"], ["a"] * 4 + ["b"] * 2 + ["c"]
    assert choose_held_out(digests, 2, sets) == {"a1", "b1"}
    assert choose_held_out(digests, 3, sets) == {"a1", "a2", "b1"}
    assert choose_held_out(digests, 4, sets) == {"a1", "a2", "a3", "b1"}
    assert choose_held_out(digests, 5, sets) >= {"a1", "a2", "a3", "b1"}
    assert choose_held_out(digests[::-1], 3, sets[::-1]) == {"a1", "a2", "b1"}


@pytest.mark.parametrize(
    "others",
    [
        EIGHT[::-1],
        [candidate(f"{7 - seed}.png", encoded(noise(seed))) for seed in range(8)],
        [candidate(f"{seed}.png", encoded(noise(seed), compress_level=0)) for seed in range(8)],
        [candidate(f"{seed}.bmp", encoded(noise(seed), "BMP")) for seed in range(8)],
        [candidate(f"{seed}.webp", encoded(noise(seed), "WEBP", lossless=True)) for seed in range(8)],
    ],
    ids=["another order", "other names", "other bytes", "BMP", "WebP"],
)
def test_what_the_images_show_alone_decides_which_are_held_out(tmp_path, others):
    held_out = held_out_of(EIGHT, tmp_path / "first")
    assert len(held_out) == 3
    assert held_out_of(others, tmp_path / "second") == held_out


def test_a_picture_more_exchanges_at_most_one_of_the_held_out_images(tmp_path):
    before, exchanged = held_out_of(EIGHT, tmp_path / "before"), []
    for seed in range(8, 24):
        after = held_out_of([candidate("new.png", encoded(noise(seed))), *EIGHT], tmp_path / f"{seed}")
        assert len(after) == 3
        assert after - before <= {noise(seed).tobytes()}
        exchanged.append(len(after - before))
    assert set(exchanged) == {0, 1}


def test_the_manifest_says_which_images_are_held_out_and_the_others_are_trained_on(tmp_path):
    rows = collect(EIGHT, tmp_path, collection(held_out_images=3))
    assert read_manifest(tmp_path) == rows
    lines = (tmp_path / "manifest.csv").read_text().splitlines()
    assert lines[0].endswith(",split")
    assert [line.rpartition(",")[2] for line in lines[1:]] == [row.split for row in rows]
    assert Counter(row.split for row in rows) == {"test": 3, "train": 5}
    held_out, trained_on = shown(tmp_path, rows, TEST), shown(tmp_path, rows, TRAIN)
    assert held_out | trained_on == {noise(seed).tobytes() for seed in range(8)}
    assert not held_out & trained_on


def test_a_held_out_image_keeps_the_caption_that_it_came_with(tmp_path):
    captioned = [replace(each, caption=f"caption of {each.name}") for each in EIGHT]
    rows = collect(captioned, tmp_path, collection(held_out_images=3))
    assert [row.caption for row in rows] == [f"caption of {seed}.png" for seed in range(8)]


def test_without_held_out_images_all_are_trained_on(tmp_path):
    assert {row.split for row in collect(PICTURES, tmp_path, collection(held_out_images=0))} == {"train"}


@pytest.mark.parametrize(
    ("candidates", "changed", "message"),
    [
        (PICTURES, {"held_out_images": 3}, "given 3: of 3 images"),
        (PICTURES, {"held_out_images": 12}, "given 12: of 3 images"),
        (PICTURES[:1], {"held_out_images": 1}, "given 1: of 1 image"),
        (PICTURES, {"held_out_images": 2, "max_images": 2}, "given 2: of 2 images"),
        ([*PICTURES, BROKEN, PICTURES[0]], {"held_out_images": 3, "on_bad": "skip"}, "given 3: of 3 images"),
    ],
)
def test_holding_out_all_images_is_refused_by_its_setting(tmp_path, candidates, changed, message):
    rest = r", some must be left to train on; set it lower \(0 compares with the training images\)$"
    with pytest.raises(ValueError, match=rf"^download\.held_out_images: {message}{rest}"):
        collect(candidates, tmp_path, collection(**changed))


def test_all_images_but_one_may_be_held_out(tmp_path):
    rows = collect(PICTURES, tmp_path, collection(held_out_images=2))
    assert Counter(row.split for row in rows) == {"test": 2, "train": 1}


def test_repeats_are_what_they_are_beside_those_of_others(tmp_path, capsys):
    """What all have in common changes nothing: an epoch then shows each image once."""
    sets = [ImageSet("good", 10)] * 2 + [ImageSet("other", 5)] * 2
    rows = collect([replace(each, image_set=of) for each, of in zip(EIGHT, sets, strict=False)], tmp_path, collection())
    assert [(row.image_set, row.repeats) for row in rows] == [("good", 2)] * 2 + [("other", 1)] * 2
    assert read_manifest(tmp_path) == rows
    assert "image sets: good: 2 images, 2 times an epoch; other: 2 images" in capsys.readouterr().err


def test_images_that_are_repeated_no_times_are_left_out(tmp_path):
    rows = collect([replace(EIGHT[0], image_set=ImageSet("out", 0)), *EIGHT[1:3]], tmp_path, collection())
    assert [row.source for row in rows] == [each.source for each in EIGHT[1:3]]
    assert "its folder has 0 repeats" in (tmp_path / "skipped.csv").read_text()
