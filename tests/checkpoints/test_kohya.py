import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from stages.checkpoints.kohya import read_kohya, to_kohya, write_kohya
from stages.checkpoints.tensors import LazyTensor, open_safetensors

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA_TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
Q_PROJ = "encoder.layers.0.self_attn.q_proj"
KOHYA_Q_PROJ = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def pair(module, rank=4):
    return {
        f"{module}.lora_A.weight": LazyTensor((rank, 8), "F32", lambda: np.ones((rank, 8), np.float32)),
        f"{module}.lora_B.weight": LazyTensor((8, rank), "F32", lambda: np.ones((8, rank), np.float32)),
    }


def alpha(settings, module=f"unet.{TO_Q}", rank=4):
    return next(
        float(tensor.read()) for key, tensor in to_kohya(pair(module, rank), settings).items() if key.endswith(".alpha")
    )


def test_names_of_the_unet():
    assert set(to_kohya(pair(f"unet.{TO_Q}"), {"unet.lora_alpha": 8})) == {
        f"{KOHYA_TO_Q}.lora_down.weight",
        f"{KOHYA_TO_Q}.lora_up.weight",
        f"{KOHYA_TO_Q}.alpha",
    }


@pytest.mark.parametrize("level", ["", "text_model."])
def test_names_of_the_text_encoder(level):
    renamed = to_kohya(pair(f"text_encoder.{level}{Q_PROJ}"), {"text_encoder.lora_alpha": 8})
    assert f"{KOHYA_Q_PROJ}.lora_up.weight" in renamed


def test_alpha_is_that_of_the_training():
    assert alpha({"unet.lora_alpha": 8}, rank=4) == 8


def test_alpha_of_a_pattern():
    assert alpha({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 1, "attn1.to_q": 2}}) == 2
    assert alpha({"unet.lora_alpha": 8, "unet.alpha_pattern": {"n1.to_q": 2}}) == 8


def test_rslora_has_the_same_scale():
    assert alpha({"unet.lora_alpha": 8, "unet.use_rslora": True}, rank=4) / 4 == 8 / 2


@pytest.mark.parametrize(
    "key",
    [
        f"unet.{TO_Q}.lora_magnitude_vector",
        f"unet.{TO_Q}.lokr_w1",
        f"unet.{TO_Q}.lora_B.bias",
        "text_encoder_2.x.lora_A.weight",
    ],
)
def test_what_is_not_plain_lora_is_refused_by_key(key):
    with pytest.raises(ValueError, match=f"{key}: only plain LoRA"):
        to_kohya({key: LazyTensor((1,), "F32", lambda: np.zeros(1))}, {"unet.lora_alpha": 8})


def test_unknown_alpha_is_refused(tmp_path):
    file = tmp_path / "lora.safetensors"
    save_file({key: tensor.read() for key, tensor in pair(f"unet.{TO_Q}").items()}, file)
    with pytest.raises(ValueError, match=r"lora.safetensors: no lora_adapter_metadata"):
        write_kohya(file, tmp_path / "out.safetensors", "float32")
    with pytest.raises(ValueError, match=r"no unet\.lora_alpha"):
        to_kohya(pair(f"unet.{TO_Q}"), {"text_encoder.lora_alpha": 8})


def test_file(tmp_path):
    settings = {"unet.lora_alpha": 8, "unet.r": 4}
    tensors = {key: tensor.read() for key, tensor in pair(f"unet.{TO_Q}").items()}
    save_file(tensors, tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
    for name in ("a", "b"):
        write_kohya(tmp_path / "lora.safetensors", tmp_path / name, "float16")
    written = load_file(tmp_path / "a")
    assert written[f"{KOHYA_TO_Q}.lora_down.weight"].dtype == np.float16
    assert written[f"{KOHYA_TO_Q}.alpha"].shape == ()
    assert open_safetensors(tmp_path / "a").keys() == written.keys()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_only_text_encoder_may_be_numbered(tmp_path):
    name = KOHYA_Q_PROJ.replace("lora_te_", "lora_te1_")
    save_file({f"{name}.alpha": np.ones(1, np.float32)}, tmp_path / "lora.safetensors")
    assert set(read_kohya(tmp_path / "lora.safetensors")) == {f"{KOHYA_Q_PROJ}.alpha"}
