import pytest
from omegaconf import OmegaConf

from stages.checkpoints.files.weight_files import FILE_SUFFIXES
from stages.pipeline import resolvers


def conf(value):
    return OmegaConf.create(value)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ({"path": "models/first.v2.safetensors"}, "first.v2"),
        ({"path": "models/folder.v2"}, "folder.v2"),
        ({"path": None, "repo": "owner/name", "file": "a/second.ckpt"}, "second"),
        ({"path": None, "repo": "owner/stable-diffusion-v1-5", "file": None}, "stable-diffusion-v1-5"),
        ({"path": None, "repo": None, "file": None}, "theta0"),
        ({"path": "???"}, "theta0"),
    ],
)
def test_a_model_is_called_as_its_file_or_repository(source, name):
    assert resolvers.model_name(conf({"theta0": {"source": source}}), "theta0") == name


@pytest.mark.parametrize("suffix", FILE_SUFFIXES)
def test_every_kind_of_file_that_is_read_is_called_without_its_suffix(suffix):
    assert resolvers.model_name(conf({"theta0": {"source": {"path": f"models/first{suffix}"}}}), "theta0") == "first"


@pytest.mark.parametrize("base", [None, conf({}), conf({"theta0": None}), conf({"theta0": {"source": "x"}}), conf([1])])
def test_what_is_no_original_has_its_own_name(base):
    assert resolvers.model_name(base, "theta0") == "theta0"


def test_what_is_trained_on_is_a_merge_or_theta0():
    theta0 = {"source": {"path": "x/ancestor"}}
    assert resolvers.merge_name(conf({"theta0": theta0, "theta1": None})) == "ancestor"
    assert resolvers.merge_name(conf({"theta0": theta0, "theta1": theta0})) == "merge"


def test_prompts_that_name_the_trigger():
    prompts = conf(["a portrait", "Mychar, smiling", "photo of mychar"])
    assert resolvers.positions(prompts, "mychar") == [1, 2]
    assert resolvers.positions(prompts, None) == [0, 1, 2]
    assert resolvers.positions(prompts, "other") == []
    assert resolvers.positions("no list", "x") == []


@pytest.mark.parametrize(("value", "values"), [([0.5, 1], [0.5, 1]), ([], []), (0.5, []), ({"a": 1}, []), ([[1], 2], [2])])
def test_the_values_of_a_sweep(value, values):
    assert resolvers.listed(conf(value) if isinstance(value, list | dict) else value) == values
