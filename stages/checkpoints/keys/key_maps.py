"""Names and shapes of every tensor of an SD1- or SD2-type model, in the diffusers and the LDM single-file layout.

The tables are derived from the components' config.json alone, so they hold for any width and depth, need no
torch, and say which keys and shapes a checkpoint must have. They go both ways: `TensorSpec` holds both names.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from stages.checkpoints.messages import shown

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_ENCODER_PREFIX = "cond_stage_model.transformer.text_model."

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Specs = Iterator["TensorSpec"]


class TensorSpec(NamedTuple):
    """One tensor of a component: its key and shape in the diffusers and in the LDM layout.

    Text-encoder keys carry `text_model.` in both layouts, as every transformers release reads them.
    """

    name: str
    ldm_name: str
    shape: Shape
    ldm_shape: Shape


class Reshapable(Protocol):
    """What the maps need of a tensor: numpy arrays and torch tensors both have it."""

    def reshape(self, shape: Shape, /) -> Any:
        """The same values in another shape."""


Tensor = TypeVar("Tensor", bound=Reshapable)


def component_specs(component: str, config: Config) -> list[TensorSpec]:
    """Every tensor of a component.

    Args:
        component: "unet", "vae" or "text_encoder".
        config: The component's config.json.

    Raises:
        ValueError: The config describes an architecture without a table here.
    """
    return list(_SPECS[component](config))


def to_ldm(tensors: Mapping[str, Tensor], specs: Iterable[TensorSpec]) -> dict[str, Tensor]:
    """Rename (and reshape, where the layouts differ) a component's tensors from diffusers to LDM keys."""
    return {spec.ldm_name: tensors[spec.name].reshape(spec.ldm_shape) for spec in specs}


def from_ldm(tensors: Mapping[str, Tensor], specs: Iterable[TensorSpec]) -> dict[str, Tensor]:
    """Rename (and reshape, where the layouts differ) a component's tensors from LDM to diffusers keys."""
    return {spec.name: tensors[spec.ldm_name].reshape(spec.shape) for spec in specs}


def unet_specs(config: Config) -> Specs:
    """The tensors of a UNet2DConditionModel with SD1 (conv) or SD2 (linear) transformer projections."""
    _refuse_unknown(config, _UNET_FIXED, "UNet")
    for spec in _unet_body(config):
        yield spec._replace(ldm_name=UNET_PREFIX + spec.ldm_name)


def vae_specs(config: Config) -> Specs:
    """The tensors of an AutoencoderKL. LDM files hold its attention as 1x1 convolutions, diffusers as linear layers."""
    _refuse_unknown(config, _VAE_FIXED, "VAE")
    for spec in _vae_body(config):
        yield spec._replace(ldm_name=VAE_PREFIX + spec.ldm_name)


def text_encoder_specs(config: Config) -> Specs:
    """The tensors of a CLIPTextModel; the LDM layout only prefixes them (defaults as in transformers' CLIPTextConfig)."""
    width, inner = config.get("hidden_size", 512), config.get("intermediate_size", 2048)
    embeddings = {
        "token_embedding": config.get("vocab_size", 49408),
        "position_embedding": config.get("max_position_embeddings", 77),
    }
    for name, rows in embeddings.items():
        yield from _clip(_weight(f"embeddings.{name}", "", (rows, width)))
    for index in range(config.get("num_hidden_layers", 12)):
        layer = f"encoder.layers.{index}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _clip(_affine(f"{layer}.self_attn.{projection}", "", (width, width)))
        yield from _clip(_affine(f"{layer}.layer_norm1", "", (width,)))
        yield from _clip(_affine(f"{layer}.mlp.fc1", "", (inner, width)))
        yield from _clip(_affine(f"{layer}.mlp.fc2", "", (width, inner)))
        yield from _clip(_affine(f"{layer}.layer_norm2", "", (width,)))
    yield from _clip(_affine("final_layer_norm", "", (width,)))


_SPECS = {"unet": unet_specs, "vae": vae_specs, "text_encoder": text_encoder_specs}

_ATTENTION = {
    "CrossAttnDownBlock2D": True,
    "CrossAttnUpBlock2D": True,
    "DownBlock2D": False,
    "UpBlock2D": False,
}
# Settings that add or rename tensors, with the one value the tables cover; configs may leave them out.
_UNET_FIXED = {
    "addition_embed_type": None,
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_embedding_type": "positional",
    "resnet_time_scale_shift": "default",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "attention_type": "default",
    "cross_attention_norm": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
}
_VAE_FIXED = {"mid_block_add_attention": True, "use_quant_conv": True, "use_post_quant_conv": True}


def _refuse_unknown(config: Config, fixed: Config, component: str) -> None:
    for setting, value in fixed.items():
        if config.get(setting, value) != value:
            hint = " (SDXL)" if setting == "addition_embed_type" else ""
            raise ValueError(
                f"{component} config: {setting} is {shown(repr(config[setting]))}{hint}; only SD1- and SD2-type models "
                f"({setting}: {value!r}) can be read"
            )


def _has_attention(block_type: str) -> bool:
    if block_type not in _ATTENTION:
        raise ValueError(f"UNet config: block type {shown(repr(block_type))} is unknown; known: {', '.join(_ATTENTION)}")
    return _ATTENTION[block_type]


def _per_block(value: int | list[int], blocks: int) -> list[int]:
    return [value] * blocks if isinstance(value, int) else list(value)


def _weight(name: str, ldm_name: str, shape: Shape, ldm_shape: Shape | None = None) -> Specs:
    yield TensorSpec(f"{name}.weight", f"{ldm_name}.weight", shape, ldm_shape or shape)


def _affine(name: str, ldm_name: str, shape: Shape, ldm_shape: Shape | None = None) -> Specs:
    yield from _weight(name, ldm_name, shape, ldm_shape)
    yield TensorSpec(f"{name}.bias", f"{ldm_name}.bias", shape[:1], shape[:1])


def _conv(name: str, ldm_name: str, width_in: int, width_out: int, kernel: int = 3) -> Specs:
    return _affine(name, ldm_name, (width_out, width_in, kernel, kernel))


def _clip(specs: Specs) -> Specs:
    for spec in specs:
        yield spec._replace(name=f"text_model.{spec.name}", ldm_name=TEXT_ENCODER_PREFIX + spec.name)


def _unet_body(config: Config) -> Specs:
    width, time_width = config["block_out_channels"][0], 4 * config["block_out_channels"][0]
    yield from _affine("time_embedding.linear_1", "time_embed.0", (time_width, width))
    yield from _affine("time_embedding.linear_2", "time_embed.2", (time_width, time_width))
    yield from _conv("conv_in", "input_blocks.0.0", config["in_channels"], width)
    yield from _unet_down(config)
    yield from _unet_mid(config)
    yield from _unet_up(config)
    yield from _affine("conv_norm_out", "out.0", (width,))
    yield from _conv("conv_out", "out.2", width, config["out_channels"])


class _UnetBlock(NamedTuple):
    """One resolution level: its width, number of resnets, and transformer depth (0: no attention)."""

    width: int
    layers: int
    depth: int


def _unet_blocks(config: Config, types: str) -> list[_UnetBlock]:
    """The levels from the highest resolution to the lowest, with attention as `types` says."""
    widths = config["block_out_channels"]
    kinds = config[types] if types == "down_block_types" else config[types][::-1]
    layers = _per_block(config.get("layers_per_block", 2), len(widths))
    depths = _per_block(config.get("transformer_layers_per_block", 1), len(widths))
    return [
        _UnetBlock(width, count, depth if _has_attention(kind) else 0)
        for width, count, depth, kind in zip(widths, layers, depths, kinds, strict=True)
    ]


def _skip_widths(config: Config) -> list[int]:
    """Widths of the skip connections in the order in which the down path makes them."""
    blocks = _unet_blocks(config, "down_block_types")
    skips = [blocks[0].width]
    for level, block in enumerate(blocks):
        last = level == len(blocks) - 1
        skips += [block.width] * (block.layers + (not last))
    return skips


def _unet_down(config: Config) -> Specs:
    blocks = _unet_blocks(config, "down_block_types")
    width_in, index = blocks[0].width, 1
    for level, block in enumerate(blocks):
        for layer in range(block.layers):
            name, ldm_name = f"down_blocks.{level}", f"input_blocks.{index}"
            yield from _unet_resnet(f"{name}.resnets.{layer}", f"{ldm_name}.0", (width_in, block.width), config)
            yield from _transformer(f"{name}.attentions.{layer}", f"{ldm_name}.1", block, config)
            width_in, index = block.width, index + 1
        if level < len(blocks) - 1:
            ldm_name = f"input_blocks.{index}.0.op"
            yield from _conv(f"down_blocks.{level}.downsamplers.0.conv", ldm_name, block.width, block.width)
            index += 1


def _unet_mid(config: Config) -> Specs:
    width = config["block_out_channels"][-1]
    depth = _per_block(config.get("transformer_layers_per_block", 1), len(config["block_out_channels"]))[-1]
    yield from _unet_resnet("mid_block.resnets.0", "middle_block.0", (width, width), config)
    yield from _transformer("mid_block.attentions.0", "middle_block.1", _UnetBlock(width, 1, depth), config)
    yield from _unet_resnet("mid_block.resnets.1", "middle_block.2", (width, width), config)


def _unet_up(config: Config) -> Specs:
    blocks, skips = _unet_blocks(config, "up_block_types")[::-1], _skip_widths(config)
    width_in, index = blocks[0].width, 0
    for level, block in enumerate(blocks):
        for layer in range(block.layers + 1):
            name, ldm_name = f"up_blocks.{level}", f"output_blocks.{index}"
            widths = (width_in + skips.pop(), block.width)
            yield from _unet_resnet(f"{name}.resnets.{layer}", f"{ldm_name}.0", widths, config)
            yield from _transformer(f"{name}.attentions.{layer}", f"{ldm_name}.1", block, config)
            width_in, index = block.width, index + 1
        if level < len(blocks) - 1:
            # The upsampler is the last module of the level's last output block, behind the attention if any.
            ldm_name = f"output_blocks.{index - 1}.{2 if block.depth else 1}.conv"
            yield from _conv(f"up_blocks.{level}.upsamplers.0.conv", ldm_name, block.width, block.width)


def _unet_resnet(name: str, ldm_name: str, widths: tuple[int, int], config: Config) -> Specs:
    width_in, width = widths
    yield from _affine(f"{name}.norm1", f"{ldm_name}.in_layers.0", (width_in,))
    yield from _conv(f"{name}.conv1", f"{ldm_name}.in_layers.2", width_in, width)
    time_width = 4 * config["block_out_channels"][0]
    yield from _affine(f"{name}.time_emb_proj", f"{ldm_name}.emb_layers.1", (width, time_width))
    yield from _affine(f"{name}.norm2", f"{ldm_name}.out_layers.0", (width,))
    yield from _conv(f"{name}.conv2", f"{ldm_name}.out_layers.3", width, width)
    if width_in != width:
        yield from _conv(f"{name}.conv_shortcut", f"{ldm_name}.skip_connection", width_in, width, kernel=1)


def _transformer(name: str, ldm_name: str, block: _UnetBlock, config: Config) -> Specs:
    if not block.depth:
        return
    width = block.width
    projection = (width, width) if config.get("use_linear_projection") else (width, width, 1, 1)
    yield from _affine(f"{name}.norm", f"{ldm_name}.norm", (width,))
    yield from _affine(f"{name}.proj_in", f"{ldm_name}.proj_in", projection)
    for index in range(block.depth):
        layer = f"transformer_blocks.{index}"
        yield from _transformer_block(f"{name}.{layer}", f"{ldm_name}.{layer}", width, config["cross_attention_dim"])
    yield from _affine(f"{name}.proj_out", f"{ldm_name}.proj_out", projection)


def _transformer_block(name: str, ldm_name: str, width: int, context_width: int) -> Specs:
    for attention, key_width in (("attn1", width), ("attn2", context_width)):
        for projection, width_in in (("to_q", width), ("to_k", key_width), ("to_v", key_width)):
            yield from _weight(f"{name}.{attention}.{projection}", f"{ldm_name}.{attention}.{projection}", (width, width_in))
        yield from _affine(f"{name}.{attention}.to_out.0", f"{ldm_name}.{attention}.to_out.0", (width, width))
    yield from _affine(f"{name}.ff.net.0.proj", f"{ldm_name}.ff.net.0.proj", (8 * width, width))
    yield from _affine(f"{name}.ff.net.2", f"{ldm_name}.ff.net.2", (width, 4 * width))
    for norm in ("norm1", "norm2", "norm3"):
        yield from _affine(f"{name}.{norm}", f"{ldm_name}.{norm}", (width,))


def _vae_body(config: Config) -> Specs:
    widths, layers = config["block_out_channels"], config.get("layers_per_block", 1)
    latent = config.get("latent_channels", 4)
    yield from _conv("encoder.conv_in", "encoder.conv_in", config.get("in_channels", 3), widths[0])
    yield from _vae_encoder_blocks(widths, layers)
    yield from _vae_ends("encoder", widths[-1], widths[-1], 2 * latent)
    yield from _conv("decoder.conv_in", "decoder.conv_in", latent, widths[-1])
    yield from _vae_decoder_blocks(widths, layers)
    yield from _vae_ends("decoder", widths[-1], widths[0], config.get("out_channels", 3))
    yield from _conv("quant_conv", "quant_conv", 2 * latent, 2 * latent, kernel=1)
    yield from _conv("post_quant_conv", "post_quant_conv", latent, latent, kernel=1)


def _vae_encoder_blocks(widths: list[int], layers: int) -> Specs:
    width_in = widths[0]
    for level, width in enumerate(widths):
        name, ldm_name = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        for layer in range(layers):
            yield from _vae_resnet(f"{name}.resnets.{layer}", f"{ldm_name}.block.{layer}", width_in, width)
            width_in = width
        if level < len(widths) - 1:
            yield from _conv(f"{name}.downsamplers.0.conv", f"{ldm_name}.downsample.conv", width, width)


def _vae_decoder_blocks(widths: list[int], layers: int) -> Specs:
    width_in = widths[-1]
    for level, width in enumerate(reversed(widths)):
        # LDM counts the decoder's levels from the highest resolution down, diffusers in the order they run.
        name, ldm_name = f"decoder.up_blocks.{level}", f"decoder.up.{len(widths) - 1 - level}"
        for layer in range(layers + 1):
            yield from _vae_resnet(f"{name}.resnets.{layer}", f"{ldm_name}.block.{layer}", width_in, width)
            width_in = width
        if level < len(widths) - 1:
            yield from _conv(f"{name}.upsamplers.0.conv", f"{ldm_name}.upsample.conv", width, width)


def _vae_ends(part: str, mid_width: int, width: int, width_out: int) -> Specs:
    for index in (0, 1):
        yield from _vae_resnet(f"{part}.mid_block.resnets.{index}", f"{part}.mid.block_{index + 1}", mid_width, mid_width)
    yield from _vae_attention(f"{part}.mid_block.attentions.0", f"{part}.mid.attn_1", mid_width)
    yield from _affine(f"{part}.conv_norm_out", f"{part}.norm_out", (width,))
    yield from _conv(f"{part}.conv_out", f"{part}.conv_out", width, width_out)


def _vae_attention(name: str, ldm_name: str, width: int) -> Specs:
    yield from _affine(f"{name}.group_norm", f"{ldm_name}.norm", (width,))
    for projection, ldm_projection in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        yield from _affine(f"{name}.{projection}", f"{ldm_name}.{ldm_projection}", (width, width), (width, width, 1, 1))


def _vae_resnet(name: str, ldm_name: str, width_in: int, width: int) -> Specs:
    yield from _affine(f"{name}.norm1", f"{ldm_name}.norm1", (width_in,))
    yield from _conv(f"{name}.conv1", f"{ldm_name}.conv1", width_in, width)
    yield from _affine(f"{name}.norm2", f"{ldm_name}.norm2", (width,))
    yield from _conv(f"{name}.conv2", f"{ldm_name}.conv2", width, width)
    if width_in != width:
        yield from _conv(f"{name}.conv_shortcut", f"{ldm_name}.nin_shortcut", width_in, width, kernel=1)
