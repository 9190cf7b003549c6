"""Which Python a stage runs with: sh stages/run, as dvc.yaml has it."""

import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "stages" / "run"


def environment(folder: Path, *programs: str) -> Path:
    """A folder of programs, of which a Python says where it is and what it was told."""
    folder.mkdir(parents=True)
    for name in programs:
        (folder / name).write_text(f'#!/bin/sh\necho {folder.parent.name} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "repository").mkdir()
    monkeypatch.chdir(tmp_path / "repository")
    return tmp_path


def said(path: list[Path], **variables: str) -> str:
    found = {"PATH": ":".join([*map(str, path), "/usr/bin", "/bin"]), **variables}
    command = ["/bin/sh", str(RUN), "merge", "--alpha", "0.5 and more"]
    return subprocess.run(command, env=found, capture_output=True, text=True, check=True).stdout.strip()


def test_an_active_environment_with_dvc_is_taken(here):
    active = environment(here / "active" / "bin", "python", "dvc")
    environment(here / "repository" / ".venv" / "bin", "python")
    assert said([active]) == "active -m stages.merge --alpha 0.5 and more"


@pytest.mark.parametrize("programs", [("python",), ("python3",), ()])
def test_without_dvc_beside_it_the_repository_s_own_is_taken(here, programs):
    bare = environment(here / "system" / "bin", *programs)
    environment(here / "repository" / ".venv" / "bin", "python")
    assert said([bare]).startswith(".venv -m stages.merge")


def test_in_a_folder_of_dvc_s_own_that_of_the_repository_is_taken(here, monkeypatch):
    environment(here / "repository" / ".venv" / "bin", "python")
    (here / "temporary").mkdir()
    monkeypatch.chdir(here / "temporary")
    bare = environment(here / "system" / "bin", "python")
    assert said([bare], DVC_ROOT=str(here / "repository")).startswith(".venv -m stages.merge")


def test_without_any_environment_the_python_there_is_is_taken(here):
    assert said([environment(here / "system" / "bin", "python3", "python")]).startswith("system -m")
