"""dvc.lock as DVC itself writes it."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from stages.pipeline import outputs
from stages.pipeline.clean import clean
from stages.pipeline.lockfile import LockedOut, cache_folder, cached, content_md5, gone_stages, locked_outs
from stages.pipeline.outputs import parts_of
from stages.sync import prune
from tests.pipeline.small_pipeline import ROOT, dvc, run, write_params

OUTS = {
    *("data/images/a0.3", "data/images/a0.7", "data/images/own"),
    *("data/embeddings/a0.3.safetensors", "data/embeddings/a0.7.safetensors"),
}


def below(folder):
    return {str(path) for path in Path(folder).rglob("*") if path.is_file()}


def test_content_is_what_dvc_says(pipeline):
    outs = locked_outs()
    assert {str(out.path) for out in outs} == OUTS
    assert {out.stage for out in outs} == {"generate@0.3", "generate@0.7", "embed@0.3", "embed@0.7", "own"}
    for out in outs:
        assert content_md5(out.path) == out.md5
        assert cached(out, cache_folder())
    Path("data/images/own/another.png").write_text("more")
    assert content_md5(Path("data/images/own")) != next(out.md5 for out in outs if out.stage == "own")
    assert content_md5(Path("nowhere")) == ""


def test_cached_means_every_file(pipeline):
    own = next(out for out in locked_outs() if out.stage == "own")
    picture = content_md5(Path("data/images/own/picture.png"))
    (cache_folder() / "files/md5" / picture[:2] / picture[2:]).unlink()
    assert not cached(own, cache_folder())
    assert not cached(LockedOut("x", Path("x"), ""), cache_folder())


def test_stages_that_are_gone(tmp_path):
    names = {"generate@0.3", "generate@0.7", "own", "renamed", "own@1", "generate", "base@theta0", "base@theta9", "far@1"}
    text = (
        "stages: {generate: {matrix: {alpha: '${sweep.alpha}'}}, own: {cmd: x}, base: {foreach: {theta0: 1}, do: {}},"
        " far: {matrix: {a: '${elsewhere.a}'}}}"
    )
    path = tmp_path / "dvc.yaml"
    path.write_text(text)
    gone = gone_stages(names, {"sweep": {"alpha": [0.7]}}, path)
    assert gone == {"generate@0.3", "renamed", "own@1", "generate", "base@theta9"}


def test_only_cells_that_are_gone_and_cached_are_pruned(pipeline, capsys):
    Path("data/images/mine.jpg").write_text("a picture of my own")
    Path("data/lora/mine").mkdir(parents=True)
    params = write_params([0.7])
    prune(Path("data"), params)
    assert below("data") == {
        "data/images/a0.7/p0.png",
        "data/images/own/picture.png",
        "data/images/mine.jpg",
        "data/embeddings/a0.7.safetensors",
    }
    assert Path("data/lora/mine").is_dir()
    said = capsys.readouterr().out.splitlines()
    assert "data/images/a0.3: removed, because generate@0.3 is gone from the pipeline; DVC's cache has it" in said
    assert "data/embeddings/a0.3.safetensors: removed, because embed@0.3 is gone from the pipeline; DVC's cache has it" in said
    assert "data/images/mine.jpg: not listed in dvc.lock: left alone; the comparison does not show it" in said
    assert len(said) == 4
    write_params([0.3, 0.7])
    assert "Running stage" not in dvc("repro").stdout, "they come back from the cache"


def test_what_was_changed_since_is_not_pruned(pipeline, capsys):
    Path("data/images/a0.3/p0.png").unlink()
    Path("data/images/a0.3/p0.png").write_text("retouched")
    prune(Path("data"), write_params([0.7]))
    assert Path("data/images/a0.3/p0.png").read_text() == "retouched"
    assert "data/images/a0.3: of generate@0.3, which is gone, but changed since: left alone" in capsys.readouterr().out


def test_what_the_cache_does_not_have_is_not_pruned(pipeline, capsys):
    shutil.rmtree(".dvc/cache")
    prune(Path("data"), write_params([0.7]))
    assert Path("data/images/a0.3/p0.png").exists()
    assert "but not in DVC's cache" in capsys.readouterr().out


def test_nothing_is_pruned_without_a_lock_file(pipeline):
    Path("dvc.lock").unlink()
    before = below("data")
    prune(Path("data"), write_params([0.7]))
    assert below("data") == before


def test_clean_removes_what_the_lock_file_lists_and_nothing_else(pipeline, capsys):
    Path("data/my_pictures").mkdir()
    Path("data/my_pictures/1.jpg").write_text("mine")
    Path("data/images/.a0.3.part").mkdir()
    Path("data/images/own/picture.png").unlink()
    Path("data/images/own/picture.png").write_text("retouched")
    Path(".checkpoints/train").mkdir(parents=True)
    Path("models").mkdir()
    clean()
    assert below("data") == {"data/my_pictures/1.jpg", "data/images/own/picture.png"}
    assert not Path("data/embeddings").exists()
    assert not Path("data/images/.a0.3.part").exists()
    assert not Path(".checkpoints").exists()
    assert Path("models").is_dir()
    said = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in said if line.startswith("removed")} == OUTS - {"data/images/own"} | {".checkpoints"}
    assert "left    data/images/own: it is not what dvc.lock says, so it was changed since it was made" in said


def test_clean_leaves_data_alone_without_a_lock_file(pipeline, capsys):
    Path("dvc.lock").unlink()
    before = below("data")
    clean()
    assert below("data") == before
    assert "there is no dvc.lock" in capsys.readouterr().out


def test_half_a_lock_file_is_refused_wherever_dvc_refuses_it(pipeline, tmp_path):
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import parse_yaml

    whole = Path("dvc.lock").read_text()
    refused = 0
    for length in range(0, len(whole), 7):
        path = tmp_path / "half.lock"
        path.write_text(whole[:length])
        try:
            COMPILED_LOCKFILE_SCHEMA(parse_yaml(whole[:length], path))
        except Exception:
            with pytest.raises(
                ValueError, match=r"git checkout .*half\.lock`\), or delete it; then `dvc repro` runs again only"
            ):
                locked_outs(path)
            refused += 1
    assert refused > 10


def test_a_damaged_lock_file_is_one_line_with_the_cure_and_the_cure_works(pipeline):
    whole = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text(whole[: whole.rindex("outs:") + len("ou")])
    dvc("repro", status=None)
    done = run(sys.executable, "-m", "stages.pipeline.lockfile", status=1)
    assert done.stderr.startswith("pipeline: error: dvc.lock cannot be read")
    assert done.stderr.count("\n") == 1
    before = below("data")
    assert run(sys.executable, "-m", "stages.pipeline.clean", status=1).stderr.startswith(
        "clean: error: dvc.lock cannot be read"
    )
    assert below("data") == before
    Path("dvc.lock").unlink()
    assert "Running stage" not in dvc("repro").stdout, "all comes from the cache"
    assert Path("dvc.lock").read_text() == whole
    run(sys.executable, "-m", "stages.pipeline.lockfile")


def test_a_full_disk_is_refused_before_dvc_writes(pipeline, monkeypatch):
    outputs.check_room()
    monkeypatch.setattr(outputs, "ROOM", 2**60)
    with pytest.raises(OSError, match=r"MiB are free on this disk, and DVC needs .* make room"):
        outputs.check_room()


def test_make_repro_looks_first_and_waits_for_the_lock_of_other_commands():
    commands = run("make", "-n", "repro", cwd=ROOT).stdout
    looking, running = (re.search(rf"{command}\b", commands) for command in (r"stages\.pipeline\.lockfile", "dvc .*repro"))
    assert looking
    assert running
    assert looking.end() < running.start()
    assert "--wait-for-lock" in running[0]


def test_dvc_looks_past_what_a_killed_stage_left_half_written(pipeline):
    """In a folder that the comparison depends on as a whole."""
    shutil.copy(ROOT / ".dvcignore", ".dvcignore")
    Path("dvc.yaml").write_text(
        Path("dvc.yaml").read_text() + "  compare:\n    cmd: date +%N > report\n    deps: [data/images]\n"
    )
    dvc("repro")
    part, before = parts_of(Path("data/images/a0.7"))
    for folder in (part, before):
        folder.mkdir()
        (folder / "p0.png").write_text("half")
    assert "Running stage" not in dvc("repro").stdout
