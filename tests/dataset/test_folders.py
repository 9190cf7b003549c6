import os

import pytest

from stages.dataset.file_paths import printable
from stages.dataset.folders import list_images, visible_files
from tests.dataset.pictures import encoded, noise, save_noise


def images(folder):
    return list(list_images(visible_files(folder)))


def test_images_are_listed_by_path_without_hidden_and_foreign_files(tmp_path, capsys):
    save_noise(tmp_path, "b.png", "a/z.JPG", ".hidden.png", ".cache/c.png", "B.webp")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.png").mkdir()
    assert images(tmp_path) == ["B.webp", "a/z.JPG", "b.png"]
    assert capsys.readouterr().err == "left out hidden files (1): .hidden.png\n"


def test_rarer_suffixes_are_found_and_others_by_content(tmp_path, capsys):
    names = ["a.png", "b.JPG", "c.jfif", "d.jpe", "e.heic", "f.jxl", "g.pjpeg", "no_suffix"]
    save_noise(tmp_path, *names)
    assert images(tmp_path) == names
    assert capsys.readouterr().err == ""


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    save_noise(tmp_path, "a.png", "._a.png")
    for name in ("b.heic", "c.psd", "d.zip"):
        (tmp_path / name).write_bytes(b"something else")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert images(tmp_path) == ["a.png"]
    hidden, others = capsys.readouterr().err.splitlines()
    assert hidden == "left out hidden files (1): ._a.png"
    assert "(5): b.heic, c.psd, d.zip, gone.png, pipe.png; convert pictures to PNG, unpack archives" in others


def test_of_many_left_out_files_the_first_are_named(tmp_path, capsys):
    for number in range(9):
        (tmp_path / f"{number}.psd").write_bytes(b"8BPS")
    assert images(tmp_path) == []
    assert "(9): 0.psd, 1.psd, 2.psd, 3.psd, 4.psd, …;" in capsys.readouterr().err


def test_linked_folders_are_followed_once_and_loops_end(tmp_path, capsys):
    mine, other = save_noise(tmp_path / "mine", "own.png"), save_noise(tmp_path / "other", "x.png", "y.png")
    for link, target in {"set": other, "again": other, "loop": mine, "up": tmp_path}.items():
        (mine / link).symlink_to(target)
    (other / "back").symlink_to(mine)
    (mine / "file.png").symlink_to(other / "x.png")
    assert images(mine) == ["again/x.png", "again/y.png", "file.png", "own.png"]
    assert "followed links to folders (1): again/; what changes behind them makes no stage run" in capsys.readouterr().err


def test_a_folder_of_its_own_comes_before_a_link_to_it(tmp_path):
    save_noise(tmp_path, "z/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "z")
    assert images(tmp_path) == ["z/a.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_refused(tmp_path):
    save_noise(tmp_path, "a/a.png", "b.png")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(PermissionError, match="a"):
            images(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)


def test_names_of_any_bytes_and_lengths_are_listed(tmp_path):
    names = [b"\x83A.png", b"a\rb.png", b"A.png", b"a.png", b"n" * 251 + b".png"]
    for seed, name in enumerate(names):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:  # noqa: PTH123 (bytes)
            file.write(encoded(noise(seed)))
    assert set(map(printable, images(tmp_path))) == {"\\x83A.png", "a\rb.png", "A.png", "a.png", "n" * 251 + ".png"}
