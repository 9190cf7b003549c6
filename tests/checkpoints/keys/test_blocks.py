import pytest

from stages.checkpoints.keys.blocks import block_alphas, block_names
from stages.checkpoints.keys.key_maps import component_specs
from tests.checkpoints.tiny import UNET

SD1 = UNET | {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
}
NAMES = [*(f"IN{index:02}" for index in range(12)), "M00", *(f"OUT{index:02}" for index in range(12))]


@pytest.fixture(scope="module")
def specs():
    return component_specs("unet", SD1)


def test_sd1_has_the_25_blocks(specs):
    assert len(specs) == 686
    assert sorted(set(block_names(specs).values())) == sorted(NAMES)


@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("time_embedding.linear_1.weight", "IN00"),
        ("conv_in.weight", "IN00"),
        ("down_blocks.0.resnets.0.conv1.weight", "IN01"),
        ("down_blocks.0.downsamplers.0.conv.weight", "IN03"),
        ("down_blocks.3.resnets.1.conv2.bias", "IN11"),
        ("mid_block.attentions.0.proj_in.weight", "M00"),
        ("up_blocks.0.resnets.0.conv1.weight", "OUT00"),
        ("up_blocks.0.upsamplers.0.conv.weight", "OUT02"),
        ("up_blocks.3.attentions.2.proj_out.weight", "OUT11"),
        ("conv_out.bias", "OUT11"),
    ],
)
def test_where_a_tensor_belongs(specs, key, block):
    assert block_names(specs)[key] == block


def test_by_name_and_by_list_are_the_same(specs):
    weights = [index / 24 for index in range(25)]
    alphas = block_alphas(weights, specs)
    assert alphas == block_alphas(dict(zip(NAMES, weights, strict=True)), specs)
    assert (alphas["conv_in.weight"], alphas["mid_block.resnets.0.norm1.bias"], alphas["conv_out.bias"]) == (0, 0.5, 1)


def test_some_blocks_leave_the_others_alone(specs):
    alphas = block_alphas({"M00": 0.5}, specs)
    assert alphas
    assert all(key.startswith("mid_block.") for key in alphas)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([0.5] * 24, "24 weights; this UNet has 25 blocks, IN00 to OUT11"), ({"IN12": 1}, "there is no IN12; this UNet has IN00")],
)
def test_blocks_that_are_not_there_are_refused(specs, weights, message):
    with pytest.raises(ValueError, match=message):
        block_alphas(weights, specs)
