import hashlib
from pathlib import Path
from typing import Any

import pytest

from stages.checkpoints.sources import locate
from stages.pipeline.config import Source


def source(path: Path | None = None, **given: Any) -> Source:
    return Source(**{"path": path, "repo": None, "revision": None, "file": None, "sha256": None} | given)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "model.safetensors"


def test_a_local_file(file):
    assert locate(source(file, sha256=hashlib.sha256(b"weights").hexdigest())) == (file, "model.safetensors", ())


def test_another_file_than_the_one_named(file):
    with pytest.raises(ValueError, match=r"its sha256 is [0-9a-f]{64}, not 0000"):
        locate(source(file, sha256="0" * 64))


def test_a_directory_has_no_digest(tmp_path):
    with pytest.raises(ValueError, match="this is a directory"):
        locate(source(tmp_path, sha256="0" * 64))


@pytest.mark.parametrize("name", ["model.ckpt", "vae", None])
def test_without_the_hub_the_error_says_what_was_wanted(name, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=f"owner/model at {'a' * 40}: not fetched from the hub") as error:
        locate(source(repo="owner/model", revision="a" * 40, file=name))
    assert len(str(error.value).splitlines()) == 1
