"""Dialects of single files: nesting, the average of the UNet's weights, and UNets without a prefix."""

import numpy as np
import pytest

from stages.checkpoints.files.tensors import LazyTensor
from stages.checkpoints.keys.architecture import architecture, refuse_other_kinds
from stages.checkpoints.keys.spellings import is_diffusers, normalise_ldm, with_ema, without_nesting
from tests.checkpoints.tiny import ldm_weights, random_weights


def lazy(array):
    return LazyTensor(array.shape, "F32", lambda: array)


UNET = {key: lazy(value) for key, value in ldm_weights({"unet": random_weights()["unet"]}).items()}
AVERAGE = {
    "model_ema." + key.removeprefix("model.").replace(".", ""): lazy(value)
    for key, value in ldm_weights({"unet": random_weights(1)["unet"]}).items()
}
DECAY = {"model_ema.decay": lazy(np.float32(0.9999)), "model_ema.num_updates": lazy(np.float32(5))}


def test_the_average_is_left_out_unless_it_is_asked_for():
    assert normalise_ldm(UNET | AVERAGE | DECAY, 2) == UNET


def test_the_average_takes_the_place_of_the_weights():
    taken = normalise_ldm(with_ema(UNET | AVERAGE | DECAY, list(UNET)), 2)
    assert taken.keys() == UNET.keys()
    expected = ldm_weights({"unet": random_weights(1)["unet"]})
    assert all(np.array_equal(taken[key].read(), value) for key, value in expected.items())


def test_a_known_name_of_the_average():
    assert "model_ema.diffusion_modelinput_blocks00weight" in AVERAGE


@pytest.mark.parametrize(
    ("average", "message"),
    [
        ({}, "holds no EMA weights"),
        (DECAY, "holds no EMA weights"),
        (dict(list(AVERAGE.items())[1:]), f"EMA weights are incomplete; missing 1: {next(iter(AVERAGE))}"),
    ],
)
def test_an_average_that_is_not_whole_is_refused(average, message):
    with pytest.raises(ValueError, match=message):
        with_ema(UNET | average, list(UNET))


def test_nesting_in_every_key_is_taken_off():
    assert without_nesting({f"state_dict.{key}": value for key, value in UNET.items()}) == UNET
    assert without_nesting(UNET | {"state_dict.a": lazy(np.zeros(1))}).keys() - UNET.keys() == {"state_dict.a"}


def test_a_unet_without_prefix():
    assert normalise_ldm({key.removeprefix("model.diffusion_model."): value for key, value in UNET.items()}, 2) == UNET


def test_layouts_are_told_apart():
    weights = random_weights()
    assert is_diffusers({key: lazy(value) for key, value in weights["unet"].items()})
    assert is_diffusers({key: lazy(value) for key, value in weights["vae"].items()})
    assert not is_diffusers({key: lazy(value) for key, value in ldm_weights(weights).items()})


TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
PROJ_IN = "model.diffusion_model.input_blocks.1.1.proj_in.weight"


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        ({TO_K: (320, 768), PROJ_IN: (320, 320, 1, 1)}, "SD1-type"),
        ({TO_K: (320, 1024), PROJ_IN: (320, 320)}, "SD2-type"),
        ({TO_K: (640, 2048), PROJ_IN: (640, 640)}, "SDXL-type"),
        ({"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 768)}, "SD1-type"),
    ],
)
def test_generations_are_told_from_shapes(shapes, name):
    assert str(architecture(shapes)).startswith(name)


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({TO_K: (640, 2048)}, "SDXL"),
        ({TO_K: (640, 1280)}, "SDXL"),
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "SD3"),
        ({"double_blocks.0.img_attn.qkv.weight": (1, 1)}, "FLUX"),
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "ControlNet"),
        ({"lora_unet_down_blocks_0.lora_down.weight": (4, 320)}, "LoRA"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}, r"inpainting \(9 input channels\)"),
        ({"conv_in.weight": (320, 8, 3, 3)}, "InstructPix2Pix"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(shapes, kind):
    with pytest.raises(ValueError, match=f"is of the kind {kind}"):
        refuse_other_kinds(shapes)


def test_latents_of_any_number_of_channels_are_not_another_kind():
    refuse_other_kinds({"conv_in.weight": (64, 8, 3, 3), "conv_out.weight": (8, 64, 3, 3)})
    with pytest.raises(ValueError, match="InstructPix2Pix"):
        refuse_other_kinds({"conv_in.weight": (320, 8, 3, 3), "conv_out.weight": (4, 320, 3, 3)})
