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


SWEEP = {
    "alpha": [0.7],
    "rank": [4],
    "dreambooth_rank": [],
    "vectors": [],
    "seed": [0, 3],
    "lora_scale": [1.0, 0.5],
    "kept_steps": {"text2img": [500], "dreambooth": [], "textual_inversion": []},
    "bases": ["theta0"],
}
LORAS = [f"text2img-a0.7-r4-s{seed}{kept}{scale}" for seed in (0, 3) for kept in ("-step500", "") for scale in ("", "-x0.5")]


def test_every_seed_kept_step_and_strength_draws_and_a_training_is_exported_once():
    assert list(resolvers.variants(conf(SWEEP))) == ["theta0", "a0.7", *LORAS]
    assert list(resolvers.exports(conf(SWEEP))) == ["model-a0.7", "text2img-a0.7-r4-s0", "text2img-a0.7-r4-s3"]


def test_the_dataset_is_embedded_and_what_each_variant_drew():
    embedded = {"dataset": "data/raw", **{name: f"data/images/{name}" for name in ("theta0", "a0.7", *LORAS)}}
    assert resolvers.embedded(conf(SWEEP)) == embedded
    assert resolvers.embedded(None) == {"dataset": "data/raw"}


HOSTILE = "0; touch hacked"


@pytest.mark.parametrize("axis", ["rank", "dreambooth_rank", "vectors", "seed", "alpha", "lora_scale", "bases", "kept_steps"])
def test_what_is_no_number_gets_into_no_name(axis):
    hostile = {"text2img": [HOSTILE], "dreambooth": HOSTILE} if axis == "kept_steps" else [HOSTILE]
    sweep = conf(SWEEP | {axis: hostile})
    for composed in (resolvers.variants(sweep), resolvers.embedded(sweep), resolvers.exports(sweep)):
        assert "touch" not in OmegaConf.to_yaml(composed)


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"keep_every": 500, "max_train_steps": 1600}, [500, 1000, 1500]),
        ({"keep_every": 500, "max_train_steps": 1500}, [500, 1000]),
        ({"keep_every": 500, "max_train_steps": 500}, []),
        ({"keep_every": None, "max_train_steps": 1500}, []),
        ({"keep_every": 0, "max_train_steps": 1500}, []),
        ({"keep_every": 500, "max_train_steps": "???"}, []),
        ({"keep_every": "often", "max_train_steps": 1500}, []),
        ({}, []),
        (None, []),
    ],
)
def test_the_steps_that_a_training_keeps_its_lora_after(training, steps):
    """All but the end, which there is anyway; a wrong value is refused by its stage, and keeps none here."""
    assert resolvers.kept(None if training is None else conf(training)) == steps


@pytest.mark.parametrize(("value", "values"), [([0.5, 1], [0.5, 1]), ([], []), (0.5, []), ({"a": 1}, []), ([[1], 2], [2])])
def test_the_values_of_a_sweep(value, values):
    assert resolvers.listed(conf(value) if isinstance(value, list | dict) else value) == values
