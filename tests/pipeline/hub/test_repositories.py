"""Files of a hub on this machine, by the real client: what is fetched, in which form, and what is refused."""

from pathlib import Path

import pytest

from stages.pipeline.config import ModelSource
from stages.pipeline.hub.repositories import TRANSFORMERS, fetch_file, fetch_folder, fetch_model
from tests.dataset.loopback_hub import COMMIT, Hub, reached

REPO = "owner/model"
SMALL = {name: name.encode() for name in ("config.json", "tokenizer.json", "preprocessor_config.json", "vocab.txt")}
FILES = {
    **SMALL,
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickled weights",
    "tf_model.h5": b"of another library",
    "README.md": b"card",
    "onnx/model.safetensors": b"of another program",
}


@pytest.fixture
def hub(tmp_path):
    hub = Hub(REPO, dict(FILES), "models")
    with reached(hub, tmp_path / "hub"):
        yield hub


def source(path: Path | None = None) -> ModelSource:
    repo, revision = (None, None) if path else (REPO, COMMIT)
    return ModelSource(path=path, repo=repo, revision=revision, file=None, sha256=None)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_model_comes_with_what_is_read_of_it_alone(hub):
    folder = fetch_model("embed.clip", source())
    assert names(folder) == {*SMALL, "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert folder.name == COMMIT


def test_a_folder_of_this_machine_is_taken_as_it_is(tmp_path):
    assert fetch_model("embed.clip", source(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json"])
def test_weights_in_other_forms_are_fetched_where_there_is_no_better_one(hub, name):
    del hub.files["model.safetensors"]
    shards = {"model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2"}
    if name.endswith(".index.json"):
        hub.files |= {name: b"{}", **shards}
        hub.digests |= Hub.digest_all(hub.files)
    expected = {name, *shards} if name.endswith(".index.json") else {name}
    assert names(fetch_model("embed.clip", source())) == {*SMALL, *expected}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_refused_by_its_name_and_its_setting(hub, name):
    hub.files[name] = hub.files[name][:-1] + b"x"
    for _ in range(2):  # from the cache too
        with pytest.raises(ValueError, match=rf"^caption\.model: {REPO}: {name}: damaged on its way: .*delete /") as refused:
            fetch_model("caption.model", source())
        assert "\n" not in str(refused.value)
    hub.files[name] = FILES[name]
    Path(str(refused.value).rpartition("delete ")[2]).unlink()
    assert (fetch_model("caption.model", source()) / name).read_bytes() == FILES[name]


def test_what_was_fetched_needs_no_hub(hub, monkeypatch):
    folder = fetch_model("embed.clip", source())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_model("embed.clip", source()) == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^embed\.clip: owner/model at 0123.*: not fetched .*unset HF_HUB_OFFLINE$"):
        fetch_model("embed.clip", source())


def test_a_form_that_another_program_left_in_the_cache_is_not_taken_for_the_best(hub):
    fetch_file(REPO, COMMIT, "pytorch_model.bin")
    assert "model.safetensors" in names(fetch_model("embed.clip", source()))


def test_files_that_nobody_reads_may_be_damaged(hub):
    fetch_file(REPO, COMMIT, "tf_model.h5").path.resolve().write_bytes(b"x")
    assert "tf_model.h5" in names(fetch_model("embed.clip", source()))


def test_a_file_beside_another_comes_along_and_is_checked_too(hub):
    file = fetch_file(REPO, "main", "model.safetensors", beside=["config.json", "absent.yaml"])
    assert (file.path.read_bytes(), file.commit) == (b"weights", COMMIT)
    (file.path.parent / "config.json").resolve().write_bytes(b"[]")
    with pytest.raises(ValueError, match=r"^owner/model: config\.json: damaged"):
        fetch_file(REPO, COMMIT, "model.safetensors", beside=["config.json"])


def test_a_folder_of_a_repository_has_the_layout_of_a_whole_one(hub):
    hub.files |= {f"clip/{name}": content for name, content in FILES.items()}
    hub.digests |= Hub.digest_all(hub.files)
    found = fetch_folder(REPO, COMMIT, TRANSFORMERS, "clip")
    assert found.path.name == "clip"
    assert names(found.path) == {*SMALL, "model.safetensors"}
    assert names(found.path.parent) == {f"clip/{name}" for name in (*SMALL, "model.safetensors")}
