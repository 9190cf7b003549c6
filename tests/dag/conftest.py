"""The real DAG at its smallest size (experiment=smoke), run once, and copies of it for tests to change."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.dag.repository import Repository, copy_tree


@pytest.fixture(scope="session")
def repository(tmp_path_factory, worker_id) -> Repository:
    """The experiment at its smallest size, run once by one of the processes that share the tests; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "repository"
    with FileLock(f"{root}.lock"):
        if not Path(f"{root}.done").exists():
            shutil.rmtree(root, ignore_errors=True)
            repository = copy_tree(root)
            ran = repository.repro()
            assert {"download", "merge@0.7", "train_text2img@0.7-8-0", "embed@dataset", "compare", "export@model-a0.7"} <= ran
            assert repository.repro() == set()
            Path(f"{root}.done").touch()
    return Repository(root)


@pytest.fixture
def baseline(repository, tmp_path) -> Iterator[Repository]:
    """A copy of the repository with the same cache, for a test to change."""
    clone = Repository(tmp_path / "copy")
    shutil.copytree(repository.root, clone.root, ignore=lambda folder, _: ["cache"] if folder.endswith("/.dvc") else [])
    (clone.root / ".dvc/config.local").write_text(f"[cache]\n    dir = {repository.root / '.dvc/cache'}\n")
    yield clone
    shutil.rmtree(clone.root)
