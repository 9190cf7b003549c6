from dataclasses import replace

import pytest

from stages.dataset.metadata import ManifestRow, read_captions, read_manifest, write_captions, write_manifest
from tests.dataset.pictures import save_noise


def row(file_name: str) -> ManifestRow:
    return ManifestRow(file_name, 'https://example.org/a,"b"', "0" * 64, "1" * 64, "CC BY 4.0, Žofie", 20, 16)


def test_manifest_comes_back_as_written(tmp_path):
    save_noise(tmp_path, "0001.png", "0002.png")
    rows = [row("0002.png"), row("0001.png")]
    write_manifest(tmp_path, rows)
    assert read_manifest(tmp_path) == rows
    assert b"\r" not in (tmp_path / "manifest.csv").read_bytes()


def test_captions_are_a_column_only_where_there_are_any(tmp_path):
    save_noise(tmp_path, "0001.png", "0002.png")
    write_manifest(tmp_path, [row("0001.png")])
    assert (tmp_path / "manifest.csv").read_text().splitlines()[0].endswith("height")
    rows = [row("0001.png"), replace(row("0002.png"), caption='asuka, "smile"')]
    write_manifest(tmp_path, rows)
    assert read_manifest(tmp_path) == rows


def test_manifest_that_names_an_absent_image_is_refused(tmp_path):
    write_manifest(tmp_path, [row("0001.png")])
    with pytest.raises(FileNotFoundError, match=r"names 0001\.png"):
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
