"""The text encoder of SD2 in single files: OpenCLIP's names, with the three projections of an attention in one tensor."""

import re

from stages.checkpoints.files.tensors import LazyTensor, LazyTensors
from stages.checkpoints.keys.key_maps import TEXT_ENCODER_PREFIX

OPEN_CLIP_PREFIX = "cond_stage_model.model."

_NAMES = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
# The projection to the space shared with images, the temperature, and a constant: the UNet sees none of them.
_UNUSED = ("text_projection", "logit_scale", "attn_mask")
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)(weight|bias)")
_LAYERS = {
    "ln_1.": "layer_norm1",
    "ln_2.": "layer_norm2",
    "mlp.c_fc.": "mlp.fc1",
    "mlp.c_proj.": "mlp.fc2",
    "attn.out_proj.": "self_attn.out_proj",
}


def has_open_clip(tensors: LazyTensors) -> bool:
    """Whether a single file has the text encoder of SD2."""
    return any(key.startswith(OPEN_CLIP_PREFIX) for key in tensors)


def from_open_clip(tensors: LazyTensors, layers: int) -> dict[str, LazyTensor]:
    """Give the text encoder's tensors the keys of `key_maps`, and leave all others as they are.

    The UNet attends to what the last layer but one gives; so the file has one layer more than the config, which is
    dropped. It cannot be made again from a model in the diffusers layout.

    Args:
        tensors: Of a single file.
        layers: How many layers the config describes.

    Raises:
        ValueError: A fused tensor is not three tensors high.
    """
    converted: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(OPEN_CLIP_PREFIX)
        if name == key:
            converted[key] = tensor
        elif name not in _UNUSED:
            converted |= _converted(key, name, tensor, layers)
    return converted


def _converted(key: str, name: str, tensor: LazyTensor, layers: int) -> dict[str, LazyTensor]:
    block = _BLOCK.fullmatch(name)
    if block is None:
        return {TEXT_ENCODER_PREFIX + _NAMES[name] if name in _NAMES else key: tensor}
    index, layer, kind = int(block[1]), block[2], block[3]
    if index == layers:
        return {}
    prefix = f"{TEXT_ENCODER_PREFIX}encoder.layers.{index}."
    if layer == "attn.in_proj_":
        return {f"{prefix}self_attn.{part}.{kind}": third for part, third in _thirds(key, tensor).items()}
    return {f"{prefix}{_LAYERS[layer]}.{kind}" if layer in _LAYERS else key: tensor}


def _thirds(key: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
    rows = tensor.shape[0] if tensor.shape else 0
    if rows == 0 or rows % 3:
        raise ValueError(f"wrong shape: {key} {tensor.shape}, which is not that of three projections")
    size = rows // 3
    return {part: tensor.rows(i * size, (i + 1) * size) for i, part in enumerate(("q_proj", "k_proj", "v_proj"))}
