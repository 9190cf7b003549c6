import numpy as np
import pytest

from benchmarks.sd1 import SD1
from stages.checkpoints.keys.key_maps import component_specs, from_ldm, to_ldm
from tests.checkpoints.tiny import CONFIGS, UNET, ldm_weights, random_weights

SD1_UNET, SD1_VAE, SD1_TEXT_ENCODER = (SD1[name] for name in ("unet", "vae", "text_encoder"))


def shapes(component, config):
    return {spec.ldm_name: spec.ldm_shape for spec in component_specs(component, config)}


def test_sd1_has_the_known_number_of_keys():
    counts = [
        len(shapes(name, config)) for name, config in (("unet", SD1_UNET), ("vae", SD1_VAE), ("text_encoder", SD1_TEXT_ENCODER))
    ]
    assert counts == [686, 248, 196]


# From CompVis' v1-inference.yaml model: one tensor of every kind, and the ends of every path.
@pytest.mark.parametrize(
    ("component", "config", "key", "shape"),
    [
        ("unet", SD1_UNET, "model.diffusion_model.time_embed.2.weight", (1280, 1280)),
        ("unet", SD1_UNET, "model.diffusion_model.input_blocks.0.0.weight", (320, 4, 3, 3)),
        ("unet", SD1_UNET, "model.diffusion_model.input_blocks.1.1.proj_in.weight", (320, 320, 1, 1)),
        (
            "unet",
            SD1_UNET,
            "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
            (640, 768),
        ),
        ("unet", SD1_UNET, "model.diffusion_model.input_blocks.3.0.op.weight", (320, 320, 3, 3)),
        ("unet", SD1_UNET, "model.diffusion_model.input_blocks.4.0.skip_connection.weight", (640, 320, 1, 1)),
        ("unet", SD1_UNET, "model.diffusion_model.input_blocks.11.0.out_layers.3.weight", (1280, 1280, 3, 3)),
        ("unet", SD1_UNET, "model.diffusion_model.middle_block.1.proj_out.bias", (1280,)),
        ("unet", SD1_UNET, "model.diffusion_model.output_blocks.2.1.conv.weight", (1280, 1280, 3, 3)),
        ("unet", SD1_UNET, "model.diffusion_model.output_blocks.5.2.conv.weight", (1280, 1280, 3, 3)),
        ("unet", SD1_UNET, "model.diffusion_model.output_blocks.8.0.in_layers.0.weight", (960,)),
        ("unet", SD1_UNET, "model.diffusion_model.output_blocks.11.0.emb_layers.1.weight", (320, 1280)),
        ("unet", SD1_UNET, "model.diffusion_model.out.2.weight", (4, 320, 3, 3)),
        ("vae", SD1_VAE, "first_stage_model.encoder.down.2.block.0.nin_shortcut.weight", (512, 256, 1, 1)),
        ("vae", SD1_VAE, "first_stage_model.encoder.down.2.downsample.conv.weight", (512, 512, 3, 3)),
        ("vae", SD1_VAE, "first_stage_model.encoder.mid.attn_1.proj_out.weight", (512, 512, 1, 1)),
        ("vae", SD1_VAE, "first_stage_model.encoder.conv_out.weight", (8, 512, 3, 3)),
        ("vae", SD1_VAE, "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight", (128, 256, 1, 1)),
        ("vae", SD1_VAE, "first_stage_model.decoder.up.3.upsample.conv.weight", (512, 512, 3, 3)),
        ("vae", SD1_VAE, "first_stage_model.quant_conv.weight", (8, 8, 1, 1)),
        (
            "text_encoder",
            SD1_TEXT_ENCODER,
            "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight",
            (3072, 768),
        ),
    ],
)
def test_sd1_key(component, config, key, shape):
    assert shapes(component, config)[key] == shape


def test_round_trip_is_bitwise():
    for name, tensors in random_weights().items():
        specs = component_specs(name, CONFIGS[name])
        back = from_ldm(to_ldm(tensors, specs), specs)
        assert list(back) == list(tensors)
        assert all(np.array_equal(back[key], tensors[key]) for key in tensors)


def test_no_two_tensors_share_a_key():
    assert len(ldm_weights(random_weights())) == sum(len(component_specs(name, config)) for name, config in CONFIGS.items())


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("addition_embed_type", "text_time", "SDXL"),
        ("mid_block_type", "UNetMidBlock2D", "mid_block_type"),
        ("down_block_types", ["AttnDownBlock2D"] * 3, "AttnDownBlock2D"),
    ],
)
def test_unknown_architecture_is_refused_by_name(setting, value, message):
    with pytest.raises(ValueError, match=message):
        component_specs("unet", UNET | {setting: value})


@pytest.mark.stage
@pytest.mark.parametrize("component", ["unet", "vae"])
def test_diffusers_converts_our_keys_back(component):
    import torch
    from diffusers.loaders import single_file_utils

    convert = getattr(single_file_utils, f"convert_ldm_{component}_checkpoint")
    tensors = {key: torch.from_numpy(value) for key, value in random_weights()[component].items()}
    back = convert(to_ldm(tensors, component_specs(component, CONFIGS[component])), config=CONFIGS[component])
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key].reshape(tensors[key].shape), tensors[key]) for key in tensors)


@pytest.mark.stage
@pytest.mark.parametrize(
    "config",
    [
        UNET,
        SD1_UNET,
        SD1_UNET | {"cross_attention_dim": 1024, "use_linear_projection": True, "attention_head_dim": [5, 10, 20, 20]},
        UNET | {"layers_per_block": [1, 2, 1], "transformer_layers_per_block": [1, 2, 3]},
    ],
)
def test_names_and_shapes_are_those_of_diffusers(config):
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    expected = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    assert {spec.name: spec.shape for spec in component_specs("unet", config)} == expected
