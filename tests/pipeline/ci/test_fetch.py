"""What CI fetches with credentials: outputs that the lock files list, and no code of the other revision runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.pipeline.ci import fetch as fetched
from stages.pipeline.lockfile import LockedOut

pytestmark = pytest.mark.stage

PIPELINE = {"stages": {"write": {"cmd": "echo ${words} > out.txt", "outs": ["out.txt"]}}}


def dvc(*arguments):
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A repository whose remote holds the outputs of itself and of another revision, and neither is in its cache."""
    tmp_path, here = tmp_path_factory.mktemp("repositories"), Path.cwd()
    for name in ("trusted", "proposed", "remote"):
        (tmp_path / name).mkdir()
    os.chdir(tmp_path / "trusted")
    dvc("init", "--no-scm", "--quiet")
    dvc("remote", "add", "--default", "origin", "../remote")
    for words in ("theirs", "ours"):
        (tmp_path / "trusted" / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
        (tmp_path / "trusted" / "params.yaml").write_text(f"words: {words}\n")
        dvc("repro", "--quiet")
        dvc("push", "--quiet")
        if words == "theirs":
            for name in fetched.FILES:
                shutil.copyfile(name, tmp_path / "proposed" / name)
    shutil.rmtree(tmp_path / "trusted" / ".dvc" / "cache")
    os.chdir(here)
    return tmp_path


@pytest.fixture
def trusted(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "trusted")
    return tmp_path


def contents(folder):
    return {path.read_text() for path in folder.rglob("*") if path.is_file() and path.name != "README"}


def test_outputs_of_both_revisions_are_fetched(trusted):
    fetched.main(["--proposed", str(trusted / "proposed"), "--to", str(trusted / "fetched")])
    assert contents(trusted / "fetched") == {"ours\n", "theirs\n"}


def test_no_command_of_the_other_revision_runs(trusted):
    harmful = {"stages": {"write": {"cmd": "touch harmed", "outs": ["out.txt"]}, "; touch harmed": {"cmd": "touch harmed"}}}
    (trusted / "proposed" / "dvc.yaml").write_text(yaml.safe_dump(harmful))
    lock = yaml.safe_load((trusted / "proposed" / "dvc.lock").read_text())
    lock["stages"]["; touch harmed"] = lock["stages"]["write"]
    (trusted / "proposed" / "dvc.lock").write_text(yaml.safe_dump(lock))
    fetched.main(["--proposed", str(trusted / "proposed"), "--to", str(trusted / "fetched")])
    assert not list(trusted.rglob("harmed"))
    assert "ours\n" in contents(trusted / "fetched")


def test_what_the_remote_lacks_is_left_out(trusted, capfd):
    shutil.rmtree(trusted / "remote")
    (trusted / "remote").mkdir()
    fetched.main(["--proposed", str(trusted / "proposed"), "--to", str(trusted / "fetched")])
    assert contents(trusted / "fetched") == set()
    assert "Missing cache files" in capfd.readouterr().err


def test_large_outputs_are_left_out():
    sizes = {"sync": [1], "merge@0.7": [fetched.LARGEST + 1], "embed@a0.7": [10], "two": [fetched.LARGEST, 1]}
    outs = [LockedOut(stage, Path("data/x"), "", size) for stage, of_stage in sizes.items() for size in of_stage]
    assert fetched.small_stages(outs) == {"embed@a0.7"}


def test_a_stage_that_is_gone_stops_nothing(trusted):
    """DVC keeps what stages of an earlier sweep wrote in dvc.lock."""
    lock = yaml.safe_load((trusted / "trusted" / "dvc.lock").read_text())
    lock["stages"]["write@0.3"] = lock["stages"]["write"]
    (trusted / "trusted" / "dvc.lock").write_text(yaml.safe_dump(lock))
    fetched.main(["--proposed", str(trusted / "proposed"), "--to", str(trusted / "fetched")])
    assert {"ours\n", "theirs\n"} <= contents(trusted / "fetched")


def test_the_folder_is_never_without_a_file(trusted):
    """CI hands on no empty folder, and the next job would not find it."""
    for name in ("trusted", "proposed"):
        (trusted / name / "dvc.lock").unlink()
    fetched.main(["--proposed", str(trusted / "proposed"), "--to", str(trusted / "fetched")])
    assert [path.name for path in (trusted / "fetched").iterdir()] == ["README"]
