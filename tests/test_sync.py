"""The stage sync, in a copy of what it reads."""

import shutil
from pathlib import Path

import pytest
import yaml

from stages import sync
from stages.pipeline.command import run
from stages.pipeline.compose import compose
from stages.pipeline.fingerprints import pattern_order

ROOT = Path(__file__).parents[1]


def test_the_order_of_patterns_is_part_of_the_fingerprint():
    """DVC compares mappings without their order, and of several patterns the first that fits counts."""
    patterns = {"to_q": 6, "attn1.to_q": 2}
    orders = [pattern_order({"rank_pattern": each}) for each in (patterns, dict(reversed(patterns.items())))]
    assert orders == ["\nrank_pattern: to_q, attn1.to_q", "\nrank_pattern: attn1.to_q, to_q"]


def test_without_several_patterns_nothing_is_added():
    assert pattern_order({"rank_pattern": {"to_q": 6}, "alpha_pattern": {}, "names": {"theta0": "a", "theta1": "b"}}) == ""
    assert pattern_order({}) == pattern_order(None) == ""


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A folder with conf/, what conf/ composes to and what that names."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    for name in ("dvc.yaml", "requirements.lock"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mini").symlink_to(ROOT / "data/mini")
    monkeypatch.chdir(tmp_path)
    compose(tmp_path / "params.yaml")
    return tmp_path


def run_sync() -> None:
    run(sync.stage, ["--conf", "conf", "--cells", "data", "--out", "data/code"])


def refusal(capsys) -> list[str]:
    """What sync says as it ends with status 1, before it writes anything."""
    with pytest.raises(SystemExit) as exit:
        run_sync()
    assert exit.value.code == 1
    assert not Path("data/code").exists()
    return capsys.readouterr().err.splitlines()


@pytest.mark.stage
def test_every_other_stage_has_its_fingerprint(repository, capsys):
    """One file each, which the stages of dvc.yaml depend on; and the same bytes twice."""
    run_sync()
    assert capsys.readouterr().out.startswith("experiment mini: ")
    written = {path.name: path.read_bytes() for path in (repository / "data/code").iterdir()}
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    read = {dep for stage in stages for dep in stage.get("do", stage)["deps"] if dep.startswith("data/code/")}
    assert {f"data/code/{name}" for name in written} == read
    assert len(set(written.values())) == len(written)
    run_sync()
    assert {path.name: path.read_bytes() for path in (repository / "data/code").iterdir()} == written


@pytest.mark.stage
def test_params_edited_by_hand_are_refused(repository, capsys):
    params = repository / "params.yaml"
    text = params.read_text()
    assert "\n  threads: " in text
    params.write_text(text.replace("\n  threads: ", "\n  threads: 1"))
    (line,) = refusal(capsys)
    assert line.startswith("sync: error: params.yaml was edited by hand: change conf/ or use `dvc exp run -S ")


@pytest.mark.stage
def test_params_of_an_older_conf_are_refused(repository, capsys):
    config = repository / "conf/config.yaml"
    config.write_text(config.read_text().replace("threads: 2", "threads: 3"))
    (line,) = refusal(capsys)
    assert line.startswith("sync: error: params.yaml is stale: conf/ has changed since it was composed: ")


@pytest.mark.stage
def test_all_wrong_values_are_listed_at_once(repository, capsys):
    wrong = {"train_text2img.max_train_steps": -1, "merge.method": "magic", "runtime.threads": 0, "encode_images.batch_size": 0}
    compose(repository / "params.yaml", [f"{name}={value}" for name, value in wrong.items()])
    lines = refusal(capsys)
    assert len(lines) == len(wrong)
    for name, value in wrong.items():
        assert sum(line.startswith(f"sync: error: {name}: given {value!r}") for line in lines) == 1, lines


@pytest.mark.stage
def test_settings_that_do_not_go_together_are_listed_at_once(repository, capsys):
    compose(repository / "params.yaml", ["generate.other_prompts=[asuka]", "download.min_images=113"])
    lines = refusal(capsys)
    assert len(lines) == 2
    assert all(
        line.startswith(("sync: error: generate.other_prompts: ", "sync: error: download.min_images: ")) for line in lines
    )
