import shutil
from pathlib import Path

import pytest
import yaml

from stages.pipeline.compose import compose, main
from stages.pipeline.config import ParamsError
from stages.pipeline.provenance import check

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def params(tmp_path, monkeypatch):
    monkeypatch.chdir(CONF.parent)
    compose(tmp_path / "params.yaml")
    return yaml.safe_load((tmp_path / "params.yaml").read_text())


def test_composed_parameters_pass(params):
    check(params, CONF)


def test_an_override_passes(params, tmp_path):
    compose(tmp_path / "other.yaml", ["sweep.alpha=[0.25,1]", "runtime.threads=1"])
    other = yaml.safe_load((tmp_path / "other.yaml").read_text())
    assert other["sweep"]["alpha"] == [0.25, 1]
    check(other, CONF)


def test_a_hand_edit_is_refused(params):
    params["runtime"]["threads"] = 7
    with pytest.raises(ParamsError, match=r"edited by hand.*compose experiment=mini"):
        check(params, CONF)


def test_a_comment_in_conf_is_refused(params, tmp_path):
    copy = tmp_path / "conf"
    shutil.copytree(CONF, copy)
    check(params, copy)
    with (copy / "config.yaml").open("a") as file:
        file.write("# a comment\n")
    with pytest.raises(ParamsError, match=r"stale.*compose experiment=mini"):
        check(params, copy)


def test_an_unknown_leaf_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(CONF.parent)
    before = Path("params.yaml").read_bytes() if Path("params.yaml").exists() else None
    with pytest.raises(SystemExit):
        main(["no_such.leaf=1"])
    assert capsys.readouterr().err.startswith("compose: error: ")
    assert (Path("params.yaml").read_bytes() if Path("params.yaml").exists() else None) == before


def test_the_order_of_patterns_is_kept_and_counts(tmp_path, monkeypatch):
    """Of several patterns that fit a layer, the first counts."""
    from stages.pipeline.config import validate
    from stages.train_text2img import TrainText2imgConfig

    monkeypatch.chdir(CONF.parent)
    digests = set()
    for patterns in ("{to_q:6,attn1.to_q:2}", "{attn1.to_q:2,to_q:6}"):
        compose(tmp_path / "params.yaml", [f"++train_text2img.rank_pattern={patterns}"])
        params = yaml.safe_load((tmp_path / "params.yaml").read_text())
        check(params, CONF)
        digests.add(params["provenance"]["values"])
        config = validate("train_text2img", TrainText2imgConfig, params["train_text2img"])
        assert [f"{name}:{rank}" for name, rank in config.rank_pattern.items()] == patterns.strip("{}").split(",")
    assert len(digests) == 2
