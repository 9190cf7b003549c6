import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.checkpoints.sources import locate


@dataclass(frozen=True)
class Origin:
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    sha256: str | None = None


@pytest.fixture
def file(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "model.safetensors"


def test_a_local_file(file):
    assert locate(Origin(file, sha256=hashlib.sha256(b"weights").hexdigest())) == (file, "model.safetensors", ())


def test_another_file_than_the_one_named(file):
    with pytest.raises(ValueError, match=r"its sha256 is [0-9a-f]{64}, not 0000"):
        locate(Origin(file, sha256="0" * 64))


def test_a_directory_has_no_digest(tmp_path):
    with pytest.raises(ValueError, match="this is a directory"):
        locate(Origin(tmp_path, sha256="0" * 64))


@pytest.mark.parametrize("name", ["model.ckpt", "vae", None])
def test_without_the_hub_the_error_says_what_was_wanted(name, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=f"owner/model at {'a' * 40}: not fetched from the hub") as error:
        locate(Origin(repo="owner/model", revision="a" * 40, file=name))
    assert len(str(error.value).splitlines()) == 1
