import fcntl
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.pipeline import fingerprints, resume, seals
from stages.pipeline.lockfile import content_md5
from stages.pipeline.outputs import CHECKPOINTS
from stages.pipeline.resume import keep_output, last_output, resumable, run_digest, stage_digest
from stages.pipeline.seals import sealed_file
from tests.pipeline.small_pipeline import run


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    return tmp_path / "root"


OUT = Path("data/lora/a0.7-r4")


def interrupted_run(content="half", rank=4) -> Any:
    with pytest.raises(KeyboardInterrupt), resumable("train", {"rank": rank}, [], OUT) as folder:
        assert folder is not None
        with sealed_file(folder / "checkpoint.pt") as part:
            part.write_text(content)
        (folder / "samples").mkdir(exist_ok=True)
        with sealed_file(folder / "samples" / "p0.png") as part:
            part.write_text("image")
        raise KeyboardInterrupt
    return folder


def whole_run(content="whole", rank=4, out=OUT) -> Any:
    """The folder that the run was given; None if its result was there already."""
    with resumable("train", {"rank": rank}, [], out) as folder:
        if folder is not None:
            (out / "samples").mkdir(parents=True)
            (out / "weights").write_text(content)
            (out / "samples" / "p0.png").write_text("image")
    return folder


def note_in_lock(out, md5=None):
    """What DVC writes at last."""
    entry = f"{{path: {out}, md5: {md5 or content_md5(out)}}}"
    Path("dvc.lock").write_text(f"schema: '2.0'\nstages: {{train: {{cmd: x, outs: [{entry}]}}}}\n")


def test_interrupted_run_finds_its_folder_again(root, tmp_path):
    (tmp_path / "input").write_text("one")
    with pytest.raises(KeyboardInterrupt), resumable("train", {"rank": 4}, [tmp_path / "input"], OUT) as folder:
        assert folder is not None
        with sealed_file(folder / "checkpoint") as part:
            part.write_text("half")
        raise KeyboardInterrupt
    with resumable("train", {"rank": 4}, [tmp_path / "input"], OUT) as again:
        assert again is not None
        assert (again / "checkpoint").read_text() == "half"
        assert again.is_relative_to(root / CHECKPOINTS / "train")
    assert not again.exists(), "it wrote nothing that could be kept"


def test_a_result_that_dvc_could_not_note_is_there_again_in_place_of_a_run(capsys):
    folder = whole_run()
    before = content_md5(OUT)
    assert {path.name for path in folder.iterdir()} == {"finished", "finished.md5", "lock"}
    shutil.rmtree(OUT)  # DVC does so before each run
    assert whole_run("another") is None
    assert content_md5(OUT) == before
    assert "this very run has ended before" in capsys.readouterr().out
    shutil.rmtree(OUT)
    assert whole_run("another") is None, "as often as need be"


def test_a_result_takes_no_room_beside_the_output(root):
    folder = whole_run()
    assert (folder / "finished" / "weights").stat().st_ino == (OUT / "weights").stat().st_ino


def test_a_result_is_copied_where_there_are_no_hard_links(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    folder = whole_run()
    assert (folder / "finished" / "weights").stat().st_ino != (OUT / "weights").stat().st_ino
    shutil.rmtree(OUT)
    assert whole_run("another") is None
    assert (OUT / "weights").read_text() == "whole"


def test_what_dvc_has_noted_is_not_kept():
    """And running again, as `dvc repro --force` does, is running."""
    folder = whole_run()
    note_in_lock(OUT)
    shutil.rmtree(OUT)
    assert whole_run("another") is not None
    assert (OUT / "weights").read_text() == "another"
    note_in_lock(OUT)
    resume.forget_noted()
    assert not folder.exists()


def test_what_dvc_noted_of_other_content_removes_nothing():
    folder = whole_run()
    note_in_lock(OUT, "0" * 32 + ".dir")
    resume.forget_noted()
    Path("dvc.lock").write_text("schema: '2.0'\nstages:\n  train:\n    cmd: x\n    ou")
    resume.forget_noted()
    assert (folder / "finished" / "weights").exists()


def test_one_result_is_kept_for_each_output():
    first = whole_run()
    unfinished = interrupted_run(rank=16)
    shutil.rmtree(OUT)
    second = whole_run(rank=8)
    other = whole_run(rank=8, out=OUT.with_name("a0.3-r4"))
    assert not first.exists()
    assert (unfinished / "checkpoint.pt").exists()
    assert (second / "finished").is_dir()
    assert (other / "finished").is_dir()


def test_a_damaged_result_is_set_aside_and_run_again(capsys):
    folder = whole_run()
    (OUT / "weights").write_text("edited")  # the same file, by another name
    shutil.rmtree(OUT)
    assert whole_run("again") is not None
    assert (OUT / "weights").read_text() == "again"
    assert (folder.parent / "damaged" / "finished" / "weights").read_text() == "edited"
    assert f"{folder / 'finished'}: not what was written: set aside in" in capsys.readouterr().out


def test_a_result_with_a_file_missing_is_damaged():
    folder = whole_run()
    (folder / "finished" / "samples" / "p0.png").unlink()
    shutil.rmtree(OUT)
    assert whole_run("again") is not None


def test_a_result_that_was_not_kept_whole_is_none(capsys):
    """Killed before the note was written: the run goes on from its last checkpoint."""
    folder = interrupted_run()
    (folder / "finished").mkdir()
    (folder / ".checkpoint.pt.part").write_text("quarter")
    assert whole_run() == folder
    assert "set aside" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoint.pt", "samples/p0.png"])
@pytest.mark.parametrize("harm", ["flip", "cut", "unseal", "harm the seal"])
def test_what_does_not_fit_its_digest_is_set_aside(capsys, name, harm):
    folder = interrupted_run()
    path = folder / name
    seal = path.with_name(f".{path.name}.xxh3")
    if harm == "flip":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:2])
    elif harm == "unseal":
        seal.unlink()
    else:
        seal.write_bytes(b"\xff\xfe")
    with resumable("train", {"rank": 4}, [], OUT) as again:
        assert again is not None
        assert {file.name for file in again.iterdir()} == {"lock"}
    said = capsys.readouterr().out
    assert f"warning: {path}: not what was written: set aside in {folder.parent / 'damaged'}, and the run starts over" in said
    assert (folder.parent / "damaged" / name).exists()


def test_only_the_last_damaged_one_is_kept():
    for content in ("first", "second"):
        folder = interrupted_run(content)
        (folder / "samples" / "p0.png").write_text("damaged")
    with resumable("train", {"rank": 4}, [], OUT):
        pass
    assert (folder.parent / "damaged" / "checkpoint.pt").read_text() == "second"


def test_what_others_may_have_written_is_set_aside(capsys):
    folder = interrupted_run()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with resumable("train", {"rank": 4}, [], OUT) as again:
        assert again is not None
        assert not (again / "checkpoint.pt").exists()
    assert "others than this user may have written there" in capsys.readouterr().out


def test_a_filesystem_that_knows_no_owners_is_used(monkeypatch):
    """There, a folder made just now is not this user's own either."""
    folder = interrupted_run()
    monkeypatch.setattr(seals, "is_own", lambda path: False)
    with resumable("train", {"rank": 4}, [], OUT) as again:
        assert again == folder
        assert (folder / "checkpoint.pt").read_text() == "half"


def test_digest_is_of_settings_and_content_and_not_of_places(tmp_path):
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "weights").write_text(text)
        (tmp_path / name / "__pycache__").mkdir()
        (tmp_path / name / "__pycache__" / name).write_text(name)
    digest = run_digest({"rank": 4}, [tmp_path / "a"])
    assert digest == run_digest({"rank": 4}, [tmp_path / "b"])
    others = {
        run_digest({"rank": 8}, [tmp_path / "a"]),
        run_digest({"rank": 4}, [tmp_path / "c"]),
        run_digest({"rank": 4}, [tmp_path / "a", tmp_path / "b"]),
        run_digest({"rank": 4}, [tmp_path / "a" / "unet"]),
    }
    patterns = {"to_q": 6, "attn1.to_q": 2}  # the first that fits counts
    others |= {run_digest({"rank": each}, [tmp_path / "a"]) for each in (patterns, dict(reversed(patterns.items())))}
    assert len(others) == 6
    assert digest not in others


def test_what_a_stage_makes_is_decided_by_its_settings_its_inputs_and_its_code(tmp_path, monkeypatch):
    (tmp_path / "stages").mkdir()
    for name, text in (("__init__", ""), ("draw", "STEPS = 25\n"), ("look", "STEPS = 30\n")):
        (tmp_path / "stages" / f"{name}.py").write_text(text)
    for name in ("weights", "others"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(resume, "ROOT", tmp_path)
    digest = stage_digest("draw", {"strength": 1.0}, [tmp_path / "weights"])
    assert digest == stage_digest("draw", {"strength": 1.0}, [tmp_path / "weights"])
    others = {
        stage_digest("draw", {"strength": 0.5}, [tmp_path / "weights"]),
        stage_digest("draw", {"strength": 1.0}, [tmp_path / "others"]),
        stage_digest("draw", {"strength": 1.0}),
        stage_digest("look", {"strength": 1.0}, [tmp_path / "weights"]),
    }
    assert len(others) == 4
    assert digest not in others


def test_same_run_in_two_processes_is_refused(root):
    script = (
        "from pathlib import Path\nfrom stages.pipeline.resume import resumable\n"
        "try:\n    with resumable('train', {}, [], Path('out')): pass\n"
        "except OSError as error: print(error)"
    )
    with resumable("train", {}, [], Path("out")):
        done = run(sys.executable, "-c", script)
    assert "another process is at this very run" in done.stdout
    assert not run(sys.executable, "-c", script).stdout


def test_a_filesystem_without_locks_is_told_of_and_used(monkeypatch, capsys):
    def refuse(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert whole_run() is not None
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().out


def test_a_run_of_other_code_is_another_run(root, monkeypatch, tmp_path):
    """The code of the stage counts, with all that it imports; a comment in it does not."""
    for folder in ("stages", "stages/lora"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    stage, room = tmp_path / "stages" / "train.py", tmp_path / "stages" / "lora" / "loss.py"
    stage.write_text("from stages.lora import loss\nDROPOUT = 0.1\n")
    room.write_text("GAMMA = 5\n")
    monkeypatch.setattr(resume, "ROOT", tmp_path)
    begun = [interrupted_run()]
    for file, text in (
        (stage, "from stages.lora import loss\nDROPOUT = 0.1  # share of the captions\n"),
        (stage, "from stages.lora import loss\nDROPOUT = 0.2\n"),
        (room, "GAMMA = 4\n"),
    ):
        file.write_text(text)
        fingerprints.code_digest.cache_clear()
        fingerprints._imports.cache_clear()
        begun.append(interrupted_run())
    assert begun[0] == begun[1]
    assert len(set(begun)) == 3


def test_what_a_killed_process_left_of_keeping_its_result_is_in_nobodys_way(root):
    folder = interrupted_run()
    (folder / ".finished.part" / "samples").mkdir(parents=True)
    (folder / ".finished.part" / ".weights.part").touch()
    (folder / ".finished.before.part").mkdir()
    (folder / ".checkpoint.pt.part").touch()
    with resumable("train", {"rank": 4}, [], OUT) as again:
        assert again == folder
        assert (folder / "checkpoint.pt").read_text() == "half"
        assert not list(folder.rglob("*.part"))


def make_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("out", [Path("data/rows.txt"), Path("data/pictures")])
def test_the_last_result_is_kept_where_dvc_deletes_it(root, out):
    def inside(place: Path) -> Path:
        return place / "a.png" if out.suffix == "" else place

    for text in ("one", "two"):
        make_file(inside(out), text)
        keep_output("draw", out, "me")
        assert last_output("draw", out, "me") == out
        number_of_file = inside(out).stat().st_ino
        resume.remove(out)
        kept = last_output("draw", out, "me")
        assert kept == root / CHECKPOINTS / "draw" / out.name / "last-me" / out.name
        assert inside(kept).read_text() == text
        assert inside(kept).stat().st_ino == number_of_file, "a link, which takes no room"
    assert last_output("embed", out, "me") == out, "another stage's"
    assert last_output("draw", out, "you") == out, "made otherwise"
    make_file(inside(kept), "spoilt")
    assert last_output("draw", out, "me") == out


def test_what_others_may_have_written_is_not_the_last_result(root):
    out = Path("data/rows.txt")
    make_file(out, "one")
    keep_output("draw", out, "me")
    out.unlink()
    last_output("draw", out, "me").parent.chmod(0o777)
    assert last_output("draw", out, "me") == out


def test_nothing_is_kept_of_a_run_by_hand(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT")
    make_file(Path("rows.txt"), "one")
    keep_output("draw", Path("rows.txt"), "me")
    assert not (tmp_path / CHECKPOINTS).exists()


def test_what_another_process_is_keeping_is_left_alone(root):
    out = Path("data/rows.txt")
    make_file(out, "one")
    keep_output("draw", out, "me")
    out.unlink()
    make_file(out, "two")
    with (root / CHECKPOINTS / "draw/rows.txt/last-me/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keep_output("draw", out, "me")
    out.unlink()
    assert last_output("draw", out, "me").read_text() == "one"


def test_only_the_last_few_makings_are_kept(root):
    out = Path("data/rows.txt")
    for number in range(resume.LAST_RESULTS + 2):
        make_file(out, str(number))
        keep_output("draw", out, str(number))
        out.unlink()
    kept = [last_output("draw", out, str(number)) != out for number in range(resume.LAST_RESULTS + 2)]
    assert kept == [False] * 2 + [True] * resume.LAST_RESULTS
    assert len(list((root / CHECKPOINTS / "draw/rows.txt").iterdir())) == resume.LAST_RESULTS
