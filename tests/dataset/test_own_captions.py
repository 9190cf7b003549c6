import json

import pytest

from stages.dataset.folders import list_images, visible_files
from stages.dataset.own_captions import ImageSet, image_sets, own_captions
from tests.dataset.pictures import save_noise


def captions(folder):
    files = visible_files(folder)
    return own_captions(files, list_images(files).keys(), folder.name)


def write(folder, **texts):
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_bytes(text if isinstance(text, bytes) else text.encode())


def test_text_files_beside_images_are_their_captions(tmp_path, capsys):
    save_noise(tmp_path, "a.png", "b.JPG", "c.webp", "d.png", "e.png")
    write(tmp_path, a__txt="asuka,  smile\n", b__TXT="in capitals", c__webp__txt="with the whole name", d__caption="kohya's")
    write(tmp_path, d__png__caption="not this one")
    assert captions(tmp_path) == {
        "a.png": "asuka, smile",
        "b.JPG": "in capitals",
        "c.webp": "with the whole name",
        "d.png": "kohya's",
    }
    said = capsys.readouterr().err
    assert "images with a caption of their own: 4 in text files beside them; without: 1" in said
    assert "text files that bear no image's name are not used (1): d.png.caption" in said


def test_txt_counts_before_caption(tmp_path):
    save_noise(tmp_path, "a.png")
    write(tmp_path, a__txt="first", a__caption="second")
    assert captions(tmp_path) == {"a.png": "first"}


def test_first_line_counts_and_a_byte_order_mark_does_not(tmp_path, capsys):
    save_noise(tmp_path, "a.png", "b.png", "c.png")
    write(tmp_path, a__txt=b"\xef\xbb\xbf\r\nasuka\r\n\r\nsteps: 20\r\n", b__txt=" \n", c__txt="")
    assert captions(tmp_path) == {"a.png": "asuka"}
    said = capsys.readouterr().err
    assert "of caption files with more lines, the first counts (1): a.txt" in said
    assert "caption files without a word count as none (2): b.txt, c.txt" in said


def test_a_caption_that_is_not_utf8_is_refused_by_its_file(tmp_path):
    save_noise(tmp_path, "a.png")
    write(tmp_path, a__txt="Müller".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text .*; save it as UTF-8$"):
        captions(tmp_path)


@pytest.mark.parametrize("column", ["text", "caption"])
def test_a_table_gives_captions_and_names_strangers(tmp_path, capsys, column):
    save_noise(tmp_path, "a.png", "b.png", "sub/c.png", "sub/d.png")
    write(tmp_path, metadata__csv=f'file_name,label,{column}\na.png,1,"asuka, smile"\n./b.png,2,\nsub\\c.png,3,x\nz.png,4,y\n')
    (tmp_path / "sub/metadata.jsonl").write_text(f'{{"file_name": "d.png", "{column}": "in a subfolder"}}\n\n')
    assert captions(tmp_path) == {"a.png": "asuka, smile", "sub/c.png": "x", "sub/d.png": "in a subfolder"}
    assert "metadata.csv names files that are not there (1): z.png" in capsys.readouterr().err


def test_a_text_file_counts_before_the_table_and_the_table_before_the_folder(tmp_path, capsys):
    save_noise(tmp_path, "3_dog/a.png", "3_dog/b.png", "3_dog/c.png")
    write(tmp_path / "3_dog", a__txt="text", metadata__csv="file_name,text\na.png,table\nb.png,table\n")
    assert captions(tmp_path) == {"3_dog/a.png": "text", "3_dog/b.png": "table", "3_dog/c.png": "dog"}
    assert "1 in text files beside them, 1 in tables, 1 from the names of their folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "image,text\na.png,x\n", "lacks the column file_name"),
        ("metadata.jsonl", '{"file_name": "a.png"\n', "line 1 is not JSON"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n["a.png"]\n', "line 2 is not an object with file_name"),
    ],
)
def test_a_wrong_table_is_refused_by_its_line(tmp_path, name, content, message):
    save_noise(tmp_path, "a.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        captions(tmp_path)


def test_a_table_without_captions_says_so(tmp_path, capsys):
    save_noise(tmp_path, "a.png")
    write(tmp_path, metadata__csv="file_name,label\na.png,cat\n")
    assert captions(tmp_path) == {}
    assert "metadata.csv has no column caption or text" in capsys.readouterr().err


def test_the_name_of_a_folder_is_the_caption_of_what_has_no_other(tmp_path):
    save_noise(tmp_path, "10_mychar 1girl/a.png", "10_mychar 1girl/b.png")
    write(tmp_path / "10_mychar 1girl", a__txt="mychar, smile")
    assert captions(tmp_path) == {"10_mychar 1girl/a.png": "mychar, smile", "10_mychar 1girl/b.png": "mychar 1girl"}
    assert captions(tmp_path / "10_mychar 1girl") == {"a.png": "mychar, smile", "b.png": "mychar 1girl"}


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("10_mychar 1girl/a.png", "images", ("mychar 1girl", 10)),
        ("deep/3_cat/a.png", "images", ("cat", 3)),
        ("1_cats/a.png", "images", ("cats", 1)),
        ("cats/a.png", "images", ("", 1)),
        ("a.png", "images", ("", 1)),
        ("a.png", "10_mychar", ("mychar", 10)),
        ("cats/a.png", "10_mychar", ("", 1)),
        ("2023_summer/a.png", "images", ("", 1)),
        ("a_1/a.png", "images", ("", 1)),
        ("10/a.png", "images", ("", 1)),
        ("0_out/a.png", "images", ("out", 0)),
    ],
)
def test_a_folder_is_a_set_whose_name_may_say_how_often_it_is_shown(name, folder, expected):
    assert image_sets([name], folder) == {name: ImageSet(*expected)}


@pytest.mark.parametrize("folder", ["2023_summer", "a_1", "10", "1_once"])
def test_a_name_with_repeats_alone_is_a_caption(tmp_path, folder):
    save_noise(tmp_path, f"{folder}/a.png")
    assert captions(tmp_path) == ({f"{folder}/a.png": "once"} if folder == "1_once" else {})


def test_the_first_column_with_words_counts(tmp_path):
    save_noise(tmp_path, "a.png", "b.png", "c.png")
    rows = [
        {"file_name": "a.png", "caption": None, "text": "from text"},
        {"file_name": "b.png", "caption": "", "text": "too"},
        {"file_name": "c.png", "caption": "mine", "text": "other"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert captions(tmp_path) == {"a.png": "from text", "b.png": "too", "c.png": "mine"}


def test_only_line_feeds_end_lines(tmp_path):
    save_noise(tmp_path, "a.png", "b.png")
    row = {"file_name": "a.png", "text": "one\u2028two"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("three\x0cfour\nfive\n")
    found = captions(tmp_path)
    assert {name: words.split() for name, words in found.items()} == {"a.png": ["one", "two"], "b.png": ["three", "four"]}
