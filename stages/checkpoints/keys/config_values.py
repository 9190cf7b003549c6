"""The settings in a component's config.json that say which tensors it has: their types, and bounds that no model comes near.

An absurd one (a billion layers, half a channel) would otherwise make tables without end, or fail far from its file.
"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Required

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from stages.checkpoints.messages import shown

Width = Annotated[int, Field(ge=1, le=2**16)]
"""Channels."""
Layers = Annotated[int, Field(ge=1, le=16)]
"""Of one resolution level, or transformer blocks of one attention; SDXL has 10."""
PerLevel = Annotated[Layers | list[Layers], Field(union_mode="left_to_right")]
Widths = Annotated[list[Width], Field(min_length=1, max_length=8)]
Names = Annotated[list[str], Field(min_length=1, max_length=8)]
Switch = bool | None

_strict = ConfigDict(strict=True)


@with_config(_strict)
class _UNet(TypedDict, total=False):
    block_out_channels: Required[Widths]
    down_block_types: Required[Names]
    up_block_types: Required[Names]
    in_channels: Required[Width]
    out_channels: Required[Width]
    cross_attention_dim: Required[Width]
    layers_per_block: PerLevel
    transformer_layers_per_block: PerLevel
    use_linear_projection: Switch


@with_config(_strict)
class _Vae(TypedDict, total=False):
    block_out_channels: Required[Widths]
    in_channels: Width
    out_channels: Width
    latent_channels: Width
    layers_per_block: Layers


@with_config(_strict)
class _TextEncoder(TypedDict, total=False):
    hidden_size: Width
    intermediate_size: Width
    vocab_size: Annotated[int, Field(ge=1, le=2**24)]
    max_position_embeddings: Width
    num_hidden_layers: Annotated[int, Field(ge=1, le=128)]


_SCHEMAS = {"unet": _UNet, "vae": _Vae, "text_encoder": _TextEncoder}
# Lists with an item for each of block_out_channels.
_BY_LEVEL = ("down_block_types", "up_block_types", "layers_per_block", "transformer_layers_per_block")


def check_config(component: str, config: Mapping[str, Any]) -> None:
    """Check the settings that say which tensors a component has.

    Raises:
        ValueError: One is missing, of a wrong type or beyond all models; the message names the first such setting.
    """
    try:
        _schema(component).validate_python(dict(config))
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        setting = item["loc"][0]
        if item["type"] == "missing":
            raise ValueError(f"{setting} is missing") from error
        raise ValueError(f"{setting}: given {shown(item['input'])}: {shown(item['msg'])}") from error
    levels = len(config["block_out_channels"]) if component == "unet" else 0
    for name in _BY_LEVEL if levels else ():
        if isinstance(config.get(name), list) and len(config[name]) != levels:
            raise ValueError(f"{name}: given {shown(config[name])}: needs {levels} items, one for each of block_out_channels")


@cache
def _schema(component: str) -> TypeAdapter[Any]:
    return TypeAdapter(_SCHEMAS[component])
