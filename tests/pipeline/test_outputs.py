from pathlib import Path

import pytest

from stages.pipeline.outputs import atomic_directory, atomic_file, holds_something, parts_of, write_nothing


def test_directory_appears_only_at_the_end(tmp_path):
    out = tmp_path / "out"
    with atomic_directory(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failure_keeps_what_was_there(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(out) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (out / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_file_failure_keeps_what_was_there(tmp_path):
    out = tmp_path / "out.txt"
    out.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(out) as part:
        part.write_text("new")
        raise RuntimeError
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]
    with atomic_file(out) as part:
        part.write_text("new")
    assert out.read_text() == "new"


def test_a_crash_between_the_two_moves_loses_nothing(tmp_path):
    """The old folder was moved aside, and the new one has not taken its name yet."""
    out = tmp_path / "out"
    _, before = parts_of(out)
    before.mkdir()
    (before / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(out):
        assert (out / "a").read_text() == "old"
        raise RuntimeError
    assert (out / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_move_that_fails_keeps_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    replace = Path.replace

    def refuse(self, target):
        if self == parts_of(out)[0]:
            raise OSError("no")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no"), atomic_directory(out) as folder:
        (folder / "a").write_text("new")
    assert (out / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_or_link_in_the_way_is_replaced_and_its_target_is_not(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a").write_text("kept")
    for number, make in enumerate((lambda path: path.write_text("file"), lambda path: path.symlink_to(elsewhere))):
        out = tmp_path / f"out{number}"
        make(out)
        with atomic_directory(out) as folder:
            (folder / "b").write_text("new")
        assert [path.name for path in out.iterdir()] == ["b"]
    assert (elsewhere / "a").read_text() == "kept"


def test_an_output_that_holds_nothing_is_no_empty_folder(tmp_path):
    """DVC warns of an empty one at each look; both are nothing to a stage that reads them."""
    folder = tmp_path / "theta1"
    assert not holds_something(folder)
    folder.mkdir()
    assert not holds_something(folder)
    write_nothing(folder, "There is none.")
    assert any(folder.iterdir())
    assert not holds_something(folder)
    (folder / "model_index.json").write_text("{}")
    assert holds_something(folder)
