from dataclasses import replace

import pytest

from stages.dataset.metadata import ManifestRow, read_captions, read_dataset, read_manifest, write_captions, write_manifest
from tests.dataset.pictures import save_noise


def row(file_name: str) -> ManifestRow:
    return ManifestRow(file_name, 'https://example.org/a,"b"', "0" * 64, "1" * 64, "CC BY 4.0, Žofie", 20, 16)


def test_manifest_comes_back_as_written(tmp_path):
    save_noise(tmp_path, "0001.png", "0002.png")
    rows = [replace(row("0002.png"), split="test"), row("0001.png")]
    write_manifest(tmp_path, rows)
    assert read_manifest(tmp_path) == rows
    assert b"\r" not in (tmp_path / "manifest.csv").read_bytes()


def test_captions_are_a_column_only_where_there_are_any(tmp_path):
    save_noise(tmp_path, "0001.png", "0002.png")
    write_manifest(tmp_path, [row("0001.png")])
    assert (tmp_path / "manifest.csv").read_text().splitlines()[0].endswith(",height,split")
    rows = [row("0001.png"), replace(row("0002.png"), caption='asuka, "smile"')]
    write_manifest(tmp_path, rows)
    assert read_manifest(tmp_path) == rows


def test_manifest_that_names_an_absent_image_is_refused(tmp_path):
    write_manifest(tmp_path, [row("0001.png")])
    with pytest.raises(FileNotFoundError, match=r"names 0001\.png"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("split", ["validation", "Train", ""])
def test_an_unknown_split_is_refused_by_its_name(tmp_path, split):
    save_noise(tmp_path, "0001.png")
    write_manifest(tmp_path, [replace(row("0001.png"), split=split)])
    with pytest.raises(ValueError, match=rf"manifest\.csv: '{split}' is no split; it says train or test$"):
        read_manifest(tmp_path)


def test_a_manifest_without_splits_is_refused(tmp_path):
    save_noise(tmp_path, "0001.png")
    write_manifest(tmp_path, [row("0001.png")])
    table = (tmp_path / "manifest.csv").read_text().replace(",split", "").replace(",train", "")
    (tmp_path / "manifest.csv").write_text(table)
    with pytest.raises(ValueError, match=r"manifest\.csv lacks the column split; it has: file_name, .*, height$"):
        read_manifest(tmp_path)


def test_captions_come_back_in_order_under_exactly_two_columns(tmp_path):
    save_noise(tmp_path, "b.png", "a.png")
    captions = {"b.png": 'asuka, "smile"', "a.png": "asuka, frown\nblue"}
    write_captions(tmp_path, captions)
    assert (tmp_path / "metadata.csv").read_text().splitlines()[0] == "file_name,caption"
    assert list(read_captions(tmp_path).items()) == list(captions.items())


def test_an_empty_caption_is_refused_by_file_name(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png: its caption is empty"):
        write_captions(tmp_path, {"a.png": " "})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file_name,caption\n", "no captions"),
        ("file_name,caption\na.png,x\na.png,y\n", "twice"),
        ("file_name,text\na.png,x\n", "lacks the column caption; it has: file_name, text"),
        ("file_name,caption\nb.png,x\n", r"names b\.png"),
        ("file_name,caption\na.png\n", "row 1"),
        ("file_name,caption\na.png,x,y\n", "row 1"),
        ("", "lacks the column file_name; it has: none"),
    ],
)
def test_a_wrong_caption_table_is_refused(tmp_path, table, message):
    save_noise(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises((ValueError, OSError), match=message):
        read_captions(tmp_path)


def test_a_dataset_has_the_captions_of_both_splits(tmp_path):
    splits = {"train": {"b.png": "asuka", "c.png": "asuka, smile"}, "test": {"a.png": "asuka, frown"}}
    for split, captions in splits.items():
        write_captions(save_noise(tmp_path / split, *captions), captions)
    assert read_dataset(tmp_path) == splits


def test_a_dataset_without_held_out_images_has_no_captions_of_such(tmp_path):
    write_captions(save_noise(tmp_path / "train", "a.png"), {"a.png": "asuka"})
    assert read_dataset(tmp_path) == {"train": {"a.png": "asuka"}, "test": {}}


@pytest.mark.parametrize(("there", "missing"), [("test", "train"), ("train", "test")])
def test_a_split_without_its_table_is_refused(tmp_path, there, missing):
    write_captions(save_noise(tmp_path / there, "a.png"), {"a.png": "asuka"})
    (tmp_path / missing).mkdir()
    with pytest.raises(FileNotFoundError, match=rf"no such file: .*{missing}/metadata\.csv"):
        read_dataset(tmp_path)
