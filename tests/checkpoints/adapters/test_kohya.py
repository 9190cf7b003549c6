import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stages.checkpoints.adapters.kohya import to_kohya, write_kohya
from stages.checkpoints.adapters.lora_files import read_lora
from stages.checkpoints.file_names import LORA_METADATA_KEY
from tests.checkpoints.adapters.foreign_loras import FILES, KOHYA, LDM, QUERY, SHAPES, WORD, added, pair, save

SETTINGS = {"unet.lora_alpha": 8, "unet.r": 4, "text_encoder.lora_alpha": 2}


def trained(tmp_path, settings=SETTINGS, module=QUERY, level=""):
    """A file as training writes it."""
    prefix = f"text_encoder.{level}" if module == WORD else "unet."
    name = prefix + module.removeprefix("text_model.")
    tensors = {f"{name}.lora_{'A' if part == 'down' else 'B'}.weight": value for part, value in pair(module, 4).items()}
    save_file(tensors, tmp_path / "lora.safetensors", {LORA_METADATA_KEY: json.dumps(settings)})
    return read_lora(tmp_path / "lora.safetensors")


def alpha(tmp_path, settings):
    return float(to_kohya(trained(tmp_path, settings))[f"{KOHYA[QUERY]}.alpha"].read())


def test_names_of_the_unet(tmp_path):
    assert set(to_kohya(trained(tmp_path))) == {
        f"{KOHYA[QUERY]}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }


@pytest.mark.parametrize("level", ["", "text_model."])
def test_names_of_the_text_encoder(tmp_path, level):
    assert f"{KOHYA[WORD]}.lora_up.weight" in to_kohya(trained(tmp_path, module=WORD, level=level))


def test_alpha_is_that_of_the_training(tmp_path):
    assert alpha(tmp_path, {"unet.lora_alpha": 8}) == 8


def test_rslora_has_the_same_scale(tmp_path):
    assert alpha(tmp_path, {"unet.lora_alpha": 8, "unet.use_rslora": True}) / 4 == 8 / 2


def test_alpha_of_a_pattern(tmp_path):
    assert alpha(tmp_path, {"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 1, "attn1.to_q": 2}}) == 2


def test_dora_is_refused_by_its_layer(tmp_path):
    tensors = {f"unet.{QUERY}.lora_{part}.weight": np.ones((8, 8), np.float32) for part in "AB"}
    save_file(tensors | {f"unet.{QUERY}.lora_magnitude_vector": np.ones(8, np.float32)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=rf"lora\.safetensors: unet\.{QUERY} is DoRA"):
        to_kohya(read_lora(tmp_path / "lora.safetensors"))


def test_file(tmp_path):
    for name in ("a", "b"):
        write_kohya(trained(tmp_path), tmp_path / name, "float16")
    written = load_file(tmp_path / "a")
    assert written[f"{KOHYA[QUERY]}.lora_down.weight"].dtype == np.float16
    assert written[f"{KOHYA[QUERY]}.alpha"].shape == ()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("value", [1e-9, 0.1, 1e5])
def test_alpha_is_written_in_single_precision(tmp_path, value):
    """Half precision makes 0 of 1e-9 and infinity of 1e5."""
    write_kohya(trained(tmp_path, {"unet.lora_alpha": value}), tmp_path / "out.safetensors", "float16")
    written = load_file(tmp_path / "out.safetensors")
    assert {key.split(".", 1)[1]: value.dtype for key, value in written.items()} == {
        "alpha": np.float32, "lora_down.weight": np.float16, "lora_up.weight": np.float16,
    }  # fmt: skip
    assert written[f"{KOHYA[QUERY]}.alpha"] == np.float32(value)
    assert next(iter(read_lora(tmp_path / "out.safetensors").modules.values())).alpha == np.float32(value)


@pytest.mark.parametrize("value", [1e-60, -1e60])
def test_an_alpha_that_single_precision_does_not_hold_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=rf"lora\.safetensors: unet\.{QUERY} has an alpha of {re.escape(f'{value:g}')}, which"):
        to_kohya(trained(tmp_path, {"unet.lora_alpha": value}))


@pytest.mark.parametrize("name", FILES)
def test_files_of_others_say_the_same_in_kohyas_keys(tmp_path, name):
    """Whatever its names were, other tools compute from what is written what they compute from the file."""
    write_kohya(read_lora(save(tmp_path, name)), tmp_path / "out.safetensors", "float32")
    written = load_file(tmp_path / "out.safetensors")
    names = {kohya: module for known in (KOHYA, LDM) for module, kohya in known.items()}
    layers: dict[str, dict[str, np.ndarray]] = {}
    for key, value in written.items():
        layer, part = key.split(".", 1)
        layers.setdefault(names[layer.replace("lora_te_", "lora_te1_")] if "lora_te" in layer else names[layer], {})[part] = (
            value
        )
    truth = FILES[name][1]
    assert layers.keys() == truth.keys()
    for module, tensors in layers.items():
        assert "alpha" in tensors
        np.testing.assert_allclose(added(tensors, SHAPES[f"{module}.weight"]), truth[module], rtol=1e-5, atol=1e-6)
