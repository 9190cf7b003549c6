import pytest

from stages.pipeline.seals import is_own, is_whole, seal_of, sealed_file


def write(path, content):
    with sealed_file(path) as part:
        part.write_text(content)


def test_a_file_fits_its_seal_until_it_is_changed(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for content in ("one", "two", "two"):
        write(path, content)
        assert is_whole(path)
    path.write_text("twp")
    assert not is_whole(path)
    assert not is_whole(tmp_path / "nothing")
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint.pt", ".checkpoint.pt.xxh3"}


def test_the_old_file_fits_while_the_new_one_is_written_and_after_a_kill_before_it_takes_its_name(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    write(path, "one")
    with pytest.raises(KeyboardInterrupt), sealed_file(path) as part:
        part.write_text("two")
        assert is_whole(path)
        raise KeyboardInterrupt
    assert is_whole(path)
    seal = seal_of(path).read_text()
    write(path, "two")
    path.write_text("one")  # as if the seal had been written, and the file had not been moved
    assert is_whole(path)
    assert seal in seal_of(path).read_text()
    write(path, "three")
    assert is_whole(path)
    write(path, "four")
    path.write_text("one")
    assert not is_whole(path), "only the last two contents"


def test_what_others_may_write_to_is_not_ones_own(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    assert is_own(folder)
    folder.chmod(0o775)
    assert not is_own(folder)
    folder.chmod(0o757)
    assert not is_own(folder)


def test_the_old_file_fits_after_any_number_of_kills(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write(path, "one")
    for content in ("two", "three", "four"):
        write(path, content)
        path.write_text("one")  # as if the seal had been written, and the file had not been moved
        assert is_whole(path)


def test_damage_is_not_taken_over_into_the_next_seal(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write(path, "one")
    path.write_text("damaged")
    write(path, "two")
    path.write_text("damaged")
    assert not is_whole(path)
