import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.base import stage as base_stage
from stages.checkpoints.__main__ import main
from stages.checkpoints.merging.config import WEIGHTED_SUM
from stages.checkpoints.merging.models import merge_models
from stages.checkpoints.model import read_model, write_model
from stages.checkpoints.recipes import recipes_of
from stages.checkpoints.single_file import write_single_file
from stages.merge import stage as merge_stage
from stages.vae import stage as vae_stage
from tests.checkpoints.configs import base_config, merge_config, vae_config
from tests.checkpoints.tiny import ldm_weights, random_weights, save_configs


@pytest.fixture
def originals(tmp_path):
    save_configs(tmp_path / "configs")
    for seed, name in enumerate(("anime", "toon")):
        save_file(ldm_weights(random_weights(seed)), tmp_path / f"{name}.safetensors")
    return {name: tmp_path / f"{name}.safetensors" for name in ("anime", "toon")}


def printed(capsys, *arguments) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_what_is_printed_says_sources_weights_and_direction(tmp_path, originals, capsys):
    theta0, theta1 = (read_model(originals[name], tmp_path / "configs") for name in ("anime", "toon"))
    named = theta0.from_source("anime.safetensors"), theta1.from_source("toon.safetensors")
    merged = merge_models(*named, replace(WEIGHTED_SUM, text_encoder="theta0"), 0.7)
    write_model(tmp_path / "out", merged, "float16")
    text = printed(capsys, tmp_path / "out")
    assert "weighted_sum: theta = (1 - alpha) * theta0 + alpha * theta1" in text
    assert "alpha is the weight of theta1" in text
    assert "alpha: 0.7" in text
    assert "text_encoder: theta0" in text
    assert "theta0: anime.safetensors, sha256 " in text
    assert str(tmp_path) not in text


def test_a_single_file_says_the_recipe_of_every_part(tmp_path, originals, capsys):
    theta0, theta1 = (read_model(originals[name], tmp_path / "configs").from_source(name) for name in ("anime", "toon"))
    merged = merge_models(theta0, theta1, replace(WEIGHTED_SUM, method="slerp"), 0.5)
    merged = replace(merged, components={**merged.components, "vae": theta0.components["vae"]})
    write_single_file(merged, tmp_path / "out.safetensors", "float16")
    assert json.loads(printed(capsys, tmp_path / "out.safetensors", "--json")).keys() == {"unet", "vae", "text_encoder"}
    text = printed(capsys, tmp_path / "out.safetensors")
    assert text.startswith("out.safetensors: a whole checkpoint in the LDM layout, SD1-type (context width 8); tensors: ")
    assert "vae:\n  anime, sha256 " in text


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "a LoRA in kohya's keys"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "a LoRA in diffusers' keys"),
        ("unet.mid_block.attentions.0.proj_in.lora.up.weight", "a LoRA in diffusers' keys"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight", "a LoRA in diffusers' keys"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight", "a LoRA in diffusers' keys"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "a LoHa in kohya's keys"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lokr_w2_b", "a LoKr in kohya's keys"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "a DoRA in kohya's keys"),
        ("unet.mid_block.attentions.0.proj_in.lokr_w1", "a LoKr in diffusers' keys"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "a DoRA in diffusers' keys"),
        ("first_stage_model.decoder.conv_in.weight", "a VAE in the LDM layout"),
        ("something.else", "weights"),
    ],
)
def test_the_files_of_others_are_named(tmp_path, capsys, key, kind):
    save_file({key: np.zeros((2, 2), np.float16)}, tmp_path / "x.safetensors", metadata={"ss_network_dim": "4"})
    text = printed(capsys, tmp_path / "x.safetensors")
    assert text == f"x.safetensors: {kind}; tensors: 1 F16\nno recipe of this pipeline\n  ss_network_dim: 4\n"


@pytest.mark.parametrize("metadata", [{"note": "a\x1b[31m\nb"}, {"recipe": json.dumps({"a\x1b[0m": "b\nc", "d": [1]})}])
def test_what_a_terminal_would_follow_is_not_printed(tmp_path, capsys, metadata):
    save_file({"x": np.zeros(2)}, tmp_path / "x.safetensors", metadata=metadata)
    text = printed(capsys, tmp_path / "x.safetensors")
    assert all(line.isprintable() for line in text.splitlines())
    assert "?[" in text


def test_a_damaged_file_is_one_line(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"soup")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "x.safetensors")])
    assert capsys.readouterr().err.startswith("checkpoints: error: ")


@pytest.mark.stage
def test_a_sweep_reads_and_hashes_each_original_once(tmp_path, originals, monkeypatch):
    """Eleven alphas: `base` reads and hashes an original once; each merge reads the output of `base` and hashes nothing."""
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counted(file, algorithm):
        hashed.append(Path(file.name).name)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    config = base_config(originals["anime"], tmp_path / "configs", "float16")
    both = replace(config, theta1=base_config(originals["toon"], tmp_path / "configs").theta0)
    for name in ("theta0", "theta1"):
        base_stage(both, name, tmp_path / name)
    folders = tmp_path / "theta0", tmp_path / "theta1"
    vae_stage(vae_config("theta0", dtype="float16"), *folders, tmp_path / "vae")
    assert sorted(hashed) == ["anime.safetensors", "toon.safetensors"]

    for path in originals.values():
        path.unlink()
    for step in range(11):
        merge_stage(merge_config(), *folders, tmp_path / "vae", step / 10, tmp_path / f"a{step}")
    assert len(hashed) == 2
    recipe = recipes_of(tmp_path / "a3")["unet"]
    assert recipe["alpha"] == 0.3
    assert recipe["theta1"]["source"] == "toon.safetensors"
    assert len(recipe["theta1"]["sha256"]) == 64
