import shutil

import pytest

from tests.pipeline.small_pipeline import make_pipeline


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small pipeline that has run."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_pipeline()
    return folder


@pytest.fixture
def pipeline(made, tmp_path, monkeypatch):
    """A fresh copy of it, as the working directory."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"
