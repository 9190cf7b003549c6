import shutil
from pathlib import Path

import pytest
import yaml

from stages.pipeline.compose import compose, main
from stages.pipeline.config import ParamsError
from stages.pipeline.provenance import check, conf_digest

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


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("config.yaml", "threads: 2", "threads: 3", True),
        ("config.yaml", "threads: 2", "threads: 2  # a comment", False),
        ("experiment/mini.yaml", "resolution: 64", "resolution: 128", True),
        ("experiment/asuka.yaml", "min_size: 256", "min_size: 512", False),
        ("training/default.yaml", "noise_offset: 0.0", "noise_offset: 0.1", True),
    ],
)
def test_what_an_experiment_is_composed_of_counts_and_comments_do_not(params, tmp_path, file, old, new, counts):
    copy = tmp_path / "conf"
    shutil.copytree(CONF, copy)
    check(params, copy)
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    if counts:
        with pytest.raises(ParamsError, match=r"stale.*compose experiment=mini"):
            check(params, copy)
    else:
        check(params, copy)


def test_a_preset_counts_with_those_that_it_inherits_from(tmp_path):
    copy = tmp_path / "conf"
    shutil.copytree(CONF, copy)
    before = {name: conf_digest(copy, name) for name in ("smoke", "mini", "asuka", "no such preset")}
    mini = copy / "experiment" / "mini.yaml"
    mini.write_text(mini.read_text().replace("resolution: 64", "resolution: 128"))
    changed = {name for name, digest in before.items() if conf_digest(copy, name) != digest}
    assert changed == {"smoke", "mini", "no such preset"}


def test_an_unknown_setting_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(CONF.parent)
    before = Path("params.yaml").read_bytes() if Path("params.yaml").exists() else None
    with pytest.raises(SystemExit):
        main(["no_such.setting=1"])
    assert capsys.readouterr().err.startswith("compose: error: ")
    assert (Path("params.yaml").read_bytes() if Path("params.yaml").exists() else None) == before


def test_the_order_of_patterns_is_kept_and_counts(tmp_path, monkeypatch):
    """Of several patterns that fit a layer, the first counts."""
    from stages.lora.config import Text2imgConfig
    from stages.pipeline.config import validate

    monkeypatch.chdir(CONF.parent)
    digests = set()
    for patterns in ("{to_q:6,attn1.to_q:2}", "{attn1.to_q:2,to_q:6}"):
        compose(tmp_path / "params.yaml", [f"++train_text2img.rank_pattern={patterns}"])
        params = yaml.safe_load((tmp_path / "params.yaml").read_text())
        check(params, CONF)
        digests.add(params["provenance"]["values"])
        config = validate("train_text2img", Text2imgConfig, params["train_text2img"])
        assert [f"{name}:{rank}" for name, rank in config.rank_pattern.items()] == patterns.strip("{}").split(",")
    assert len(digests) == 2
