"""gc, fsck and why, on a small pipeline that DVC has run."""

import os
import stat

import pytest

from stages.pipeline import fsck, gc, why
from stages.pipeline.dvc_cache import object_path, objects
from stages.pipeline.lockfile import cache_folder, locked_outs
from tests.pipeline.distribute.toy import Toy


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Toy:
    toy = Toy(tmp_path / "toy")
    toy.dvc("repro")
    monkeypatch.chdir(toy.root)
    return toy


def flip_a_byte(path) -> None:
    """As a disk does it: the file's times stay."""
    times = path.stat()
    path.chmod(path.stat().st_mode | stat.S_IWUSR)
    with path.open("r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_nothing_is_damaged_at_first(toy, capsys):
    before = toy.data()
    fsck.main()
    assert "0 damaged files" in capsys.readouterr().out
    assert toy.data() == before


@pytest.mark.parametrize("path", ["data/first", "data/made/2"])
def test_a_flipped_byte_is_found_and_the_next_run_makes_it_anew(toy, capsys, path):
    before, runs = toy.data(), toy.ran("make-2")
    (md5,) = [out.md5 for out in locked_outs() if str(out.path) == path]
    flip_a_byte(object_path(cache_folder(), md5))
    toy.dvc("repro")  # trusts it
    fsck.main()
    output = capsys.readouterr().out
    assert "not what its name says" in output and f"removed {path}" not in output.replace(f"removed {path}: it was linked", "")
    toy.dvc("repro")
    assert toy.data() == before
    assert toy.ran("make-2") >= runs
    fsck.main()
    assert "0 damaged files" in capsys.readouterr().out


def test_a_damaged_checkpoint_goes(toy, capsys):
    from stages.pipeline.seals import sealed_file

    kept = toy.root / ".checkpoints/train/out/run/checkpoint.pt"
    kept.parent.mkdir(parents=True)
    for path in (kept, kept.with_name("whole.pt")):
        with sealed_file(path) as part:
            part.write_text("weights")
    flip_a_byte(kept)
    fsck.main()
    assert not kept.exists() and kept.with_name("whole.pt").exists()
    assert "1 damaged file" in capsys.readouterr().out


def test_a_cache_that_is_small_enough_keeps_all(toy, capsys):
    before = list(objects(cache_folder()))
    gc.main(["--limit", "1GB"])
    assert list(objects(cache_folder())) == before
    assert "0 runs" in capsys.readouterr().out


def test_the_oldest_that_can_be_rebuilt_goes_and_nothing_that_is_listed_or_nobody_made(toy, capsys):
    (toy.root / "models/input.txt").write_text("another\n" * 1000)
    (toy.root / "own.txt").write_text("a user's own\n" * 1000)
    toy.dvc("add", "own.txt")
    toy.dvc("repro")
    before, data = set(objects(cache_folder())), toy.data()
    gc.main(["--limit", "0", "--dry"])
    assert set(objects(cache_folder())) == before
    assert "would remove data/first" in capsys.readouterr().out
    gc.main(["--limit", "0"])
    output = capsys.readouterr().out
    assert "removed data/first" in output and "the rest is what dvc.lock lists, or what no stage made" in output
    left = set(objects(cache_folder()))
    assert left < before
    assert toy.data() == data
    for path in ("own.txt", "data"):
        assert (toy.root / path).exists()
    toy.dvc("checkout", "--force")  # all that is listed is still there
    assert toy.data() == data
    (toy.root / "models/input.txt").write_text("of a user's own\n")
    toy.dvc("repro")  # what went is made again
    assert (toy.root / "data/first").read_text() == "OF A USER'S OWN\n"
    assert toy.ran("first") == 3


@pytest.mark.parametrize("limit", ["many", "-1", "3 apples"])
def test_a_limit_that_is_none_is_refused(toy, limit, capsys):
    with pytest.raises(SystemExit):
        gc.main([f"--limit={limit}"])
    assert "give a size, such as 20GB" in capsys.readouterr().err
    assert gc.read_size("1.5 gb") == 1_500_000_000


def answer(stage, capsys) -> str:
    why.main([stage])
    return capsys.readouterr().out


def test_a_stage_that_has_not_changed_says_so(toy, capsys):
    assert "nothing has changed" in answer("make@2", capsys)


def test_settings_inputs_and_what_runs_before_are_named_with_old_and_new_values(toy, capsys):
    toy.set(factor=2.0, runtime={"device": "cpu", "threads": 2})
    (toy.root / "models/input.txt").write_text("another\n")
    assert answer("first", capsys) == "input models/input.txt: modified\n"
    assert answer("make@2", capsys).splitlines() == [
        "setting factor: 1e-08 → 2.0",
        "setting runtime.threads: 1 → 2",
        "input data/first: first would run before it (make why STAGE=first)",
    ]
    assert "make@1 would run before it" in answer("all", capsys)


def test_a_stage_that_never_ran_and_one_that_is_none(toy, capsys):
    toy.set(numbers=[1, 2, 3, 9])
    assert "it has not run yet" in answer("make@9", capsys)
    with pytest.raises(SystemExit):
        why.main(["make@17"])
    assert "there is make@1, make@2, make@3, make@9" in capsys.readouterr().err
