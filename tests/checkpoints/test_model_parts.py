"""Parts of models: files that lack a component, weights in shards, and what the UNet predicts."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.checkpoints.components import read_component, read_vae
from stages.checkpoints.model import read_model, write_model
from stages.checkpoints.reading_config import AS_IT_IS
from tests.checkpoints.tiny import SCHEDULER, UNET, WEIGHTS, ldm_weights, random_weights, save_configs, save_diffusers

FILL = replace(AS_IT_IS, fill=True)


@pytest.fixture
def weights():
    return random_weights()


@pytest.fixture
def other(tmp_path):
    return save_diffusers(tmp_path / "other", random_weights(1))


def save(path, tensors, metadata=None):
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path, metadata)
    return path


def assert_parts(model, expected):
    for name, tensors in expected.items():
        read = model.components[name].tensors
        assert read.keys() == tensors.keys()
        assert all(np.array_equal(read[key].read(), value) for key, value in tensors.items()), name


UNET_FILES = {
    "ldm": lambda weights: ldm_weights({"unet": weights["unet"]}),
    "bare": lambda weights: {key[22:]: value for key, value in ldm_weights({"unet": weights["unet"]}).items()},
    "diffusers": lambda weights: weights["unet"],
}


@pytest.mark.parametrize("form", UNET_FILES)
def test_a_unet_alone_is_filled_when_asked(tmp_path, weights, other, form):
    model = read_model(save(tmp_path / "unet.safetensors", UNET_FILES[form](weights)), other, FILL)
    assert_parts(model, random_weights(1) | {"unet": weights["unet"]})
    assert list(model.components) == ["unet", "vae", "text_encoder"]
    assert model.description().endswith("; text_encoder and vae from the config directory")


@pytest.mark.parametrize("form", UNET_FILES)
def test_a_unet_alone_is_refused_otherwise(tmp_path, weights, other, form):
    with pytest.raises(ValueError, match=r"unet.safetensors: holds no vae and no text_encoder: .* fill: true"):
        read_model(save(tmp_path / "unet.safetensors", UNET_FILES[form](weights)), other)


def test_a_file_without_vae(tmp_path, weights, other):
    file = save(tmp_path / "pruned.safetensors", ldm_weights({part: weights[part] for part in ("unet", "text_encoder")}))
    model = read_model(file, other, FILL).from_source("pruned", "other")
    assert_parts(model, weights | {"vae": random_weights(1)["vae"]})
    assert {name: component.recipe["source"] for name, component in model.components.items()} == {
        "unet": "pruned",
        "vae": "other",
        "text_encoder": "pruned",
    }


def test_a_directory_without_vae(tmp_path, weights, other):
    directory = save_diffusers(tmp_path / "model", weights)
    (directory / "vae" / WEIGHTS["vae"]).unlink()
    assert_parts(read_model(directory, other, FILL), weights | {"vae": random_weights(1)["vae"]})
    with pytest.raises(ValueError, match="model/vae: no weights"):
        read_model(directory, None)


def test_a_config_directory_without_weights_fills_nothing(tmp_path, weights):
    file = save(tmp_path / "unet.safetensors", ldm_weights({"unet": weights["unet"]}))
    with pytest.raises(ValueError, match="configs/vae: no weights"):
        read_model(file, save_configs(tmp_path / "configs"), FILL)


def test_the_average_is_read_when_asked(tmp_path, weights):
    average = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value
        for key, value in ldm_weights({"unet": random_weights(1)["unet"]}).items()
    }
    file = save(tmp_path / "ema.safetensors", ldm_weights(weights) | average)
    configs = save_configs(tmp_path / "configs")
    assert_parts(read_model(file, configs), weights)
    assert_parts(read_model(file, configs, replace(AS_IT_IS, ema=True)), weights | {"unet": random_weights(1)["unet"]})
    with pytest.raises(ValueError, match="set ema to false"):
        read_model(save_diffusers(tmp_path / "model", weights), None, replace(AS_IT_IS, ema=True))


def test_a_vae_file_in_the_diffusers_layout(tmp_path, weights):
    file = save(tmp_path / "diffusion_pytorch_model.safetensors", weights["vae"])
    vae = read_vae(file, save_configs(tmp_path / "configs") / "vae")
    assert all(np.array_equal(vae.tensors[key].read(), value) for key, value in weights["vae"].items())


def shard(folder, tensors, stem="diffusion_pytorch_model", index="diffusion_pytorch_model.safetensors.index.json"):
    names = [f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {key: names[number % 2] for number, key in enumerate(tensors)}
    for name in names:
        save(folder / name, {key: value for key, value in tensors.items() if places[key] == name})
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder / index


@pytest.fixture
def sharded(tmp_path, weights):
    directory = save_diffusers(tmp_path / "model", weights)
    (directory / "unet" / WEIGHTS["unet"]).unlink()
    shard(directory / "unet", weights["unet"])
    return directory


def test_shards(sharded, weights):
    model = read_model(sharded, None)
    assert_parts(model, weights)
    unet = model.components["unet"]
    before = unet.digest()
    assert unet.shards[1].name == "diffusion_pytorch_model-00002-of-00002.safetensors"
    changed = {key: value + 1 for key, value in weights["unet"].items()}
    shard(sharded / "unet", changed)
    assert read_component(sharded / "unet", "unet").digest() != before, "the digest covers the shards, not the index alone"


def test_shards_in_the_ldm_layout(tmp_path, weights):
    digests = []
    for change in (0, 1):
        tensors = {key: value + change for key, value in ldm_weights(weights).items()}
        index = shard(tmp_path, tensors, "model", "model.safetensors.index.json")
        model = read_model(index, save_configs(tmp_path / "configs"))
        assert np.array_equal(
            model.components["vae"].tensors["quant_conv.bias"].read(), weights["vae"]["quant_conv.bias"] + change
        )
        digests.append(
            [component.digest() for component in (*model.components.values(), read_vae(index, tmp_path / "configs/vae"))]
        )
    assert all(first != second for first, second in zip(*digests, strict=True)), "the digest covers the shards"


def test_shards_of_a_variant(tmp_path, weights):
    directory = save_diffusers(tmp_path / "model", weights)
    (directory / "unet" / WEIGHTS["unet"]).unlink()
    index = "diffusion_pytorch_model.safetensors.index.fp16.json"
    shard(directory / "unet", weights["unet"], "diffusion_pytorch_model.fp16", index)
    assert_parts(read_model(directory, None), weights)


def test_a_missing_shard_is_named(sharded):
    (sharded / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"00002-of-00002.safetensors is missing, a shard"):
        read_model(sharded, None)


def test_a_key_that_its_shard_lacks_is_named(sharded, weights):
    first = sharded / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    save(first, {"conv_in.weight": weights["unet"]["conv_in.weight"]})
    with pytest.raises(ValueError, match=r"holds no .*, which .*index\.json says"):
        read_model(sharded, None)


V = {**SCHEDULER, "prediction_type": "v_prediction"}
SILENT = {key: value for key, value in SCHEDULER.items() if key != "prediction_type"}
YAML = "model:\n  params:\n    parameterization: v\n"


@pytest.mark.parametrize(
    ("stated", "metadata", "yaml", "scheduler", "expected"),
    [
        (None, None, None, SCHEDULER, "epsilon: as scheduler_config.json says, and m.safetensors does not"),
        (None, None, None, V, "v_prediction: as scheduler_config.json says, and m.safetensors does not"),
        (None, None, None, SILENT, "epsilon, a guess: neither m.safetensors nor scheduler_config.json says"),
        (None, "v", None, SILENT, "v_prediction: as the metadata of m.safetensors say"),
        (None, "v", None, SCHEDULER, "v_prediction: .*; scheduler_config.json says epsilon and is overruled"),
        (None, "epsilon", YAML, V, "epsilon: as the metadata .*; scheduler_config.json says v_prediction and is overruled"),
        (None, None, YAML, SCHEDULER, "v_prediction: as m.yaml beside m.safetensors says; .* overruled"),
        (None, None, "model:\n  params: {}\n", SILENT, "epsilon: as m.yaml beside"),
        ("v_prediction", "epsilon", None, SCHEDULER, "v_prediction: as the parameters say"),
    ],
)
def test_prediction_type(tmp_path, weights, stated, metadata, yaml, scheduler, expected):
    file = save(tmp_path / "m.safetensors", ldm_weights(weights), metadata and {"modelspec.prediction_type": metadata})
    if yaml:
        (tmp_path / "m.yaml").write_text(yaml)
    model = read_model(file, save_configs(tmp_path / "configs", scheduler=scheduler), replace(AS_IT_IS, prediction_type=stated))
    assert re.search(f"prediction_type {expected}", model.description()), model.description()
    write_model(tmp_path / "out", model, "float32")
    written = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert written == scheduler | {"prediction_type": model.prediction_type}


GROWING = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
SHARED = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


def test_a_neighbour_may_name_things_twice(tmp_path, weights):
    file = save(tmp_path / "m.safetensors", ldm_weights(weights))
    (tmp_path / "m.yaml").write_text(GROWING + YAML)
    assert read_model(file, save_configs(tmp_path / "configs")).prediction_type == "v_prediction"


@pytest.mark.parametrize(
    "yaml",
    [
        *("model: 3\n", "{", "model:\n  params:\n    parameterization: x0\n", "model:\n  params:\n    parameterization: [v]\n"),
        *("[" * 60_000, "x" * 70_000, "\0", "model: &m\n  params: *m\n", "<!DOCTYPE html>", f"{SHARED}model: *a29\n"),
        f"{SHARED}model: {{params: {{parameterization: *a29}}}}\n",
        "other: &o {parameterization: v}\nmodel: {params: {<<: *o}}\n",
    ],
)
def test_a_neighbour_that_is_no_config_is_named(tmp_path, weights, yaml):
    file = save(tmp_path / "m.safetensors", ldm_weights(weights))
    (tmp_path / "m.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/m\.yaml: ") as error:
        read_model(file, save_configs(tmp_path / "configs"))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_a_unet_with_other_inputs_is_refused_by_name(tmp_path):
    configs = {"unet": UNET | {"in_channels": 9}}
    save_diffusers(tmp_path / "model", random_weights(configs=configs), configs)
    with pytest.raises(ValueError, match="inpainting"):
        read_component(tmp_path / "model" / "unet", "unet")
