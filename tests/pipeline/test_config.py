import re
from typing import Annotated

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from stages.pipeline.config import ParamsError, RuntimeConfig, Source, SweepConfig, load_params, read_params, strict, validate
from tests.runtime import CPU


@dataclass(frozen=True, config=strict)
class Inner:
    lr: Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=strict)
class Outer:
    inner: Inner
    steps: int


def message(schema, values) -> str:
    with pytest.raises(ParamsError) as error:
        validate("train", schema, values)
    return str(error.value)


def test_a_wrong_value_names_leaf_given_and_allowed():
    assert message(Outer, {"inner": {"lr": -1}, "steps": 2}) == "train.inner.lr: given -1: Input should be greater than 0"


def test_every_wrong_leaf_is_listed():
    lines = message(Outer, {"inner": {"lr": float("nan"), "x": 1}}).splitlines()
    assert "train.inner.x: no such parameter" in lines
    assert "train.steps: is missing" in lines
    assert any(line.startswith("train.inner.lr: given nan") for line in lines)


def test_a_mandatory_leaf_says_that_it_is_not_set():
    assert "train.steps: is mandatory and not set" in message(Outer, {"inner": {"lr": 1}, "steps": "???"})


def source(**values):
    return {"path": None, "repo": None, "revision": None, "file": None, "sha256": None} | values


def test_source_needs_exactly_one_origin(tmp_path):
    assert "either path" in message(Source, source())
    assert "either path" in message(Source, source(path=str(tmp_path), repo="a/b"))


def test_source_refuses_a_missing_path_and_a_branch():
    assert message(Source, source(path="no/such/file")) == "train.path: no such file or directory: no/such/file"
    assert "train.revision: 'main' is not a commit" in message(Source, source(repo="a/b", revision="main"))


def test_source_takes_a_commit_or_a_branch_with_a_digest():
    validate("x", Source, source(repo="a/b", revision="0" * 40))
    validate("x", Source, source(repo="a/b", revision="main", file="f.ckpt", sha256="0" * 64))


def sweep(**values):
    ranks = {"rank": [4], "dreambooth_rank": [], "vectors": []}
    plain = {"alpha": [0.5], **ranks, "seed": [0], "lora_scale": [1.0], "bases": ["theta0"]}
    return plain | {"kept_steps": {"text2img": [], "dreambooth": [], "textual_inversion": []}} | values


WRONG = [
    *({"alpha": [1.1]}, {"alpha": []}, {"alpha": [0.5, 0.5]}),
    *({"vectors": [0]}, {"vectors": [2, 2]}, {"vectors": [76]}),
    *({"rank": [0]}, {"rank": []}, {"rank": [4, 4]}, {"bases": ["theta2"]}),
    *({"seed": []}, {"seed": [0, 0]}, {"seed": [-1]}, {"seed": 0}),
    *({"lora_scale": []}, {"lora_scale": [1, 1.0]}, {"lora_scale": [11]}, {"lora_scale": 1.0}),
]


@pytest.mark.parametrize("values", WRONG)
def test_sweep_refuses_by_the_name_of_the_axis(values):
    (line,) = message(SweepConfig, sweep(**values)).splitlines()
    assert re.match(rf"train\.{next(iter(values))}\b", line)


def test_a_sweep_keeps_steps_of_both_kinds_of_lora_and_of_no_other():
    validate("sweep", SweepConfig, sweep(kept_steps={"text2img": [500, 1000], "dreambooth": [], "textual_inversion": [20]}))
    nothing_kept = message(SweepConfig, sweep(kept_steps={"text2img": [0], "dreambooth": [], "textual_inversion": []}))
    assert nothing_kept.startswith("train.kept_steps.text2img.0: given 0")
    assert message(SweepConfig, sweep(kept_steps={"merge": [1]})).startswith("train.kept_steps.merge")


def test_runtime_refuses_an_unknown_device():
    assert "'auto', 'cpu', 'cuda', 'mps' or 'xpu'" in message(RuntimeConfig, CPU | {"device": "gpu"})


def test_missing_file_and_section(tmp_path):
    with pytest.raises(ParamsError, match="is missing: run"):
        read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(ParamsError, match="is not YAML"):
        read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: 1")
    with pytest.raises(ParamsError, match="train: this section is missing"):
        load_params("train", Outer, tmp_path / "params.yaml")


def test_a_path_that_a_queued_experiment_left_behind_is_told_with_the_cure(tmp_path, monkeypatch):
    """DVC runs it in a folder of its own, with what git tracks, and DVC_ROOT names the repository."""
    (tmp_path / "repository" / "my" / "models").mkdir(parents=True)
    (tmp_path / "experiment").mkdir()
    monkeypatch.chdir(tmp_path / "experiment")
    source = {"path": "my/models", "repo": None, "revision": None, "file": None, "sha256": None}
    assert "-C" not in message(Source, source)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    assert message(Source, source).endswith("it lies untracked in the repository: bring it along, dvc exp run -C my …")
    assert "-C" not in message(Source, source | {"path": "elsewhere"})
