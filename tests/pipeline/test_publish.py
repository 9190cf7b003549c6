import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from stages.report.report import write_report
from tests.pipeline.loopback_hub import serving
from tests.report.small_comparison import DREAMBOOTH, SWEEP, TEXT2IMG, read_world, write_world

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A repository that has run: data/report, data/lora, data/export."""
    root = tmp_path_factory.mktemp("published")
    write_world(root / "data")
    (root / "data/report").mkdir()
    write_report(read_world(root / "data"), root / "data/report")
    (root / "data/export").mkdir()
    (root / "data/export" / f"{TEXT2IMG.name}.safetensors").write_bytes(b"kohya")
    sweep = json.loads(json.dumps(asdict(SWEEP)))
    (root / "params.yaml").write_text(yaml.safe_dump({"sweep": sweep}))
    return root


@pytest.fixture
def hub():
    with serving() as (hub, address):
        yield hub, address


def run(world, address, *arguments, token="hf_right"):
    environment = os.environ | {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.pipeline.publish", "owner/name", *arguments]
    return subprocess.run(
        command, cwd=world, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def test_card_lora_and_grid_come_to_the_hub_in_one_commit(world, hub):
    hub, address = hub
    done = run(world, address, "--lora", TEXT2IMG.name)
    assert done.returncode == 0, done.stderr
    files = hub.files["owner/name"]
    assert hub.commits == 1
    assert hub.private == {"owner/name": True}
    assert {"README.md", "pytorch_lora_weights.safetensors", "grid.png", f"{TEXT2IMG.name}.safetensors"} <= set(files)
    images = {name for name in files if name.startswith("images/")}
    card = ModelCard(files["README.md"].decode())
    assert {each["output"]["url"] for each in card.data.widget or []} == images
    assert card.data.base_model == ["a/toon"]
    assert card.data.library_name == "diffusers"
    assert "lora" in (card.data.tags or [])
    assert card.data.to_dict().get("license") is None
    assert "asuka, <green> background" not in card.text.replace("&lt;", "<").split("## Use")[1].split("```")[0]
    again = run(world, address, "--lora", TEXT2IMG.name)
    assert "has all of it already" in again.stdout
    assert hub.commits == 1


def test_what_differs_is_not_overwritten_unasked_and_what_is_not_ours_stays(world, hub):
    hub, address = hub
    hub.files["owner/name"] = {"README.md": b"my own words", "notes.txt": b"mine"}
    refused = run(world, address, "--lora", TEXT2IMG.name)
    assert refused.returncode == 1
    assert "owner/name: has another README.md: give --overwrite" in refused.stderr
    assert hub.files["owner/name"] == {"README.md": b"my own words", "notes.txt": b"mine"}
    agreed = run(world, address, "--lora", TEXT2IMG.name, "--overwrite")
    assert agreed.returncode == 0, agreed.stderr
    assert hub.files["owner/name"]["notes.txt"] == b"mine"
    assert hub.files["owner/name"]["README.md"] != b"my own words"
    assert "1 overwritten" in agreed.stdout


def test_one_of_several_has_to_be_named_and_has_to_be_there(world, hub):
    for arguments, said in (((), "--lora: name one"), (("--lora", "other"), "--lora: given 'other'")):
        done = run(world, hub[1], *arguments)
        assert done.returncode == 1
        assert f"{said}: the experiment has {TEXT2IMG.name}, {DREAMBOOTH.name}" in done.stderr
    assert hub[0].files == {}


def test_a_wrong_token_is_one_line(world, hub):
    done = run(world, hub[1], "--lora", TEXT2IMG.name, token="hf_wrong")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "publish: error: owner/name:" in done.stderr


def test_without_a_report_nothing_is_asked_of_the_hub(world, hub, tmp_path):
    (tmp_path / "params.yaml").write_text((world / "params.yaml").read_text())
    done = run(tmp_path, hub[1], "--lora", TEXT2IMG.name)
    assert "run `make repro` first" in done.stderr
    assert hub[0].files == {}


def test_a_hub_that_cannot_be_reached_is_one_line(world):
    done = run(world, "http://127.0.0.1:9", "--lora", TEXT2IMG.name)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
