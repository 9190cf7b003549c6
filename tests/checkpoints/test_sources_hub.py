"""Sources of the hub, with the real client and a hub on this machine: pinned, whole, and what the hub meant to give."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.dataset.loopback_hub import COMMIT, Hub, serving

REPO = "owner/model"
WEIGHTS = bytes(range(256)) * 40
# In a process of its own: the client reads the address of its hub once.
LOCATE = """
import json, sys
from stages.checkpoints.sources import locate
from stages.pipeline.config import Source
try:
    found = locate(Source(path=None, repo="owner/model", **json.loads(sys.argv[1])), weights=json.loads(sys.argv[2]))
    files = sorted(str(file.relative_to(found.path)) for file in found.path.rglob("*") if file.is_file())
    print(json.dumps({"path": str(found.path), "name": found.name, "notes": found.notes, "files": files}))
except (ValueError, OSError) as error:
    print(json.dumps({"error": str(error)}))
"""


def locate(folder: Path, endpoint: str, weights: bool = True, **source):
    values = {"revision": COMMIT, "file": None, "sha256": None} | source
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "0" if endpoint else "1",
        "HF_ENDPOINT": endpoint or "http://127.0.0.1:1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-c", LOCATE, json.dumps(values), json.dumps(weights)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.stage
def test_a_branch_is_resolved_and_the_commit_is_said(tmp_path):
    digest = sha256(WEIGHTS).hexdigest()
    with serving(Hub(REPO, {"sub/m.ckpt": WEIGHTS, "sub/m.yaml": b"model: {params: {}}"}, "models")) as endpoint:
        found = locate(tmp_path, endpoint, revision="main", file="sub/m.ckpt", sha256=digest)
    assert found["name"] == f"{REPO}@{COMMIT}/sub/m.ckpt"
    assert found["notes"] == [f"{REPO}: main is commit {COMMIT} now: write that into conf as its revision"]
    assert Path(found["path"]).read_bytes() == WEIGHTS
    assert Path(found["path"]).with_suffix(".yaml").is_file(), "the config of the training lies beside the file"
    pinned = locate(tmp_path, "", file="sub/m.ckpt", sha256=digest)
    assert (pinned["name"], pinned["notes"]) == (found["name"], []), "what is pinned needs no hub"


@pytest.mark.stage
def test_a_body_that_is_not_the_hubs_is_refused_and_fetched_again(tmp_path):
    hub = Hub(REPO, {"m.ckpt": WEIGHTS}, "models")
    with serving(hub) as endpoint:
        hub.files["m.ckpt"] = WEIGHTS[:-1] + b"x"
        refused = locate(tmp_path, endpoint, file="m.ckpt")["error"]
        assert "m.ckpt: damaged on its way" in refused
        blob = Path(refused.rpartition("delete ")[2])
        assert blob.read_bytes() == hub.files["m.ckpt"]
        hub.files["m.ckpt"] = WEIGHTS
        blob.unlink()
        assert Path(locate(tmp_path, endpoint, file="m.ckpt")["path"]).read_bytes() == WEIGHTS


@pytest.mark.stage
def test_another_file_than_the_pinned_one_is_refused(tmp_path):
    with serving(Hub(REPO, {"m.ckpt": WEIGHTS}, "models")) as endpoint:
        refused = locate(tmp_path, endpoint, file="m.ckpt", sha256="0" * 64)["error"]
    assert f"its sha256 is {sha256(WEIGHTS).hexdigest()}, not {'0' * 64}" in refused
    assert "to fetch it again, delete" in refused


@pytest.mark.stage
def test_a_download_that_broke_off_leaves_nothing_that_is_taken_for_a_file(tmp_path):
    hub = Hub(REPO, {"m.ckpt": WEIGHTS}, "models")
    blobs = tmp_path / "hf" / "hub" / "models--owner--model" / "blobs"
    blobs.mkdir(parents=True)
    litter = blobs / f"{hub.digests['m.ckpt']}.incomplete"
    litter.write_bytes(WEIGHTS[:100] + b"litter of a process that was killed")
    with serving(hub) as endpoint:
        hub.cut = 1
        first = locate(tmp_path, endpoint, file="m.ckpt")
        found = first if "path" in first else locate(tmp_path, endpoint, file="m.ckpt")
    assert Path(found["path"]).read_bytes() == WEIGHTS


FOLDER = {
    "model_index.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
    "tokenizer/vocab.json": b"{}",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors.index.json": b'{"weight_map": {}}',
    "unet/diffusion_pytorch_model-00001-of-00001.safetensors": WEIGHTS,
    "unet/diffusion_pytorch_model.fp16.safetensors": WEIGHTS,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.fp16.safetensors": WEIGHTS,
    "text_encoder/config.json": b"{}",
    "text_encoder/pytorch_model.bin": WEIGHTS,
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": WEIGHTS,
}


@pytest.mark.stage
def test_of_a_folder_only_what_is_read_is_fetched(tmp_path):
    with serving(Hub(REPO, FOLDER, "models")) as endpoint:
        configs = locate(tmp_path, endpoint, weights=False)
        found = locate(tmp_path, endpoint)
    unread = {"unet/diffusion_pytorch_model.fp16.safetensors", "safety_checker/model.safetensors"}
    assert set(found["files"]) == FOLDER.keys() - unread
    assert not [name for name in configs["files"] if name.endswith((".safetensors", ".bin", ".index.json"))]
    assert found["name"] == f"{REPO}@{COMMIT}"
