import hashlib
import json

import pytest
import torch
from safetensors import safe_open

from stages.checkpoints.file_names import LORA_FILE
from stages.lora.adapters import add_adapter, trained_parameters, write_lora
from stages.lora.tuned_model import cast_frozen, load_unet
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.settings import adapter_config
from tests.lora.tiny_adapters import TARGETS, fresh_unet, pipeline_of, predict, trained_unet


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def test_fresh_adapter_changes_nothing_and_is_all_that_is_trained(model):
    unet = load_unet(model)
    before = predict(unet)
    assert not trained_parameters(unet)
    add_adapter(unet, 2, adapter_config(), TARGETS, seed=0)
    assert torch.equal(predict(unet), before)
    assert all("lora_" in name for name in trained_parameters(unet))
    assert {len(parameter) for name, parameter in trained_parameters(unet).items() if "lora_A" in name} == {2}


def test_first_weights_depend_on_the_seed_alone(model):
    def first_weights(seed):
        torch.randn(3)
        unet = fresh_unet(model, seed=seed)
        return torch.cat([parameter.flatten() for parameter in trained_parameters(unet).values()])

    assert torch.equal(first_weights(0), first_weights(0))
    assert not torch.equal(first_weights(0), first_weights(1))


def test_gaussian_weights_have_the_rank_as_inverse_spread(model):
    unet = fresh_unet(model, rank=4)
    down = torch.cat([parameter.flatten() for name, parameter in trained_parameters(unet).items() if "lora_A" in name])
    assert down.std().item() == pytest.approx(1 / 4, rel=0.1)


@pytest.mark.parametrize("lora_alpha", [1.0, 8.0, "rank"])
def test_diffusers_loads_the_file_with_its_alpha(model, tmp_path, lora_alpha):
    unet = trained_unet(model, rank=2, lora_alpha=lora_alpha)
    write_lora({"unet": unet}, tmp_path / LORA_FILE)
    pipeline = pipeline_of(unet=load_unet(model))
    plain = predict(pipeline.unet)
    pipeline.load_lora_weights(tmp_path)
    assert torch.equal(predict(pipeline.unet), predict(unet))
    assert not torch.allclose(predict(pipeline.unet), plain, atol=1e-3)
    assert pipeline.unet.peft_config["default_0"].lora_alpha == (2 if lora_alpha == "rank" else lora_alpha)


def test_layers_other_than_attention_load_too(model, tmp_path):
    unet = trained_unet(model, targets=["proj_in", "ff.net.0.proj", "conv1", "to_q"])
    write_lora({"unet": unet}, tmp_path / LORA_FILE)
    pipeline = pipeline_of(unet=load_unet(model))
    pipeline.load_lora_weights(tmp_path)
    assert torch.equal(predict(pipeline.unet), predict(unet))


def test_file_has_one_metadata_key_and_no_path(model, tmp_path):
    write_lora({"unet": trained_unet(model)}, tmp_path / LORA_FILE)
    with safe_open(tmp_path / LORA_FILE, "np") as file:
        assert list(file.metadata()) == ["lora_adapter_metadata"]
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert settings["unet.r"] == 2
    assert settings["unet.target_modules"] == sorted(TARGETS)
    assert str(model).encode() not in (tmp_path / LORA_FILE).read_bytes()


def test_same_bytes_whatever_the_hash_seed_and_the_folder(model, tmp_path):
    import os
    import subprocess
    import sys

    script = (
        "import sys; from pathlib import Path; from stages.lora.adapters import write_lora;"
        "from tests.lora.tiny_adapters import trained_unet;"
        "from tests.drawing.tiny_models import save_tiny_checkpoint;"
        "here = Path(sys.argv[1]); save_tiny_checkpoint(here); write_lora({'unet': trained_unet(here)}, here / 'lora')"
    )
    digests = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run([sys.executable, "-c", script, folder], env=os.environ | {"PYTHONHASHSEED": seed}, check=True)
        digests.add(hashlib.sha256((folder / "lora").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_unknown_target_is_refused(model):
    with pytest.raises(ValueError, match="target_modules: 'to_z' names no layer"):
        fresh_unet(model, targets=["to_k", "to_z"])


def test_trained_weights_stay_in_float32(model):
    unet = trained_unet(model)
    before = {name: parameter.clone() for name, parameter in trained_parameters(unet).items()}
    cast_frozen(unet, torch.bfloat16)
    assert unet.conv_in.weight.dtype == torch.bfloat16
    for name, parameter in trained_parameters(unet).items():
        assert torch.equal(parameter, before[name])
