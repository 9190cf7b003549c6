"""What checkpoints call the same tensor: every known spelling becomes the one of `key_maps`, every leftover is dropped."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from stages.checkpoints.key_maps import TEXT_ENCODER_PREFIX, VAE_PREFIX
from stages.checkpoints.tensors import LazyTensor, LazyTensors

# NovelAI's models and their descendants (AnythingV3, AbyssOrangeMix) leave out `text_model.`.
_NOVELAI_PREFIX = "cond_stage_model.transformer."
_OPEN_CLIP_PREFIX = "cond_stage_model.model."
_SDXL_PREFIX = "conditioner.embedders."

# Position ids are constants that some tools have averaged into nonsense; the rest is state of training.
_LEFTOVERS = re.compile(
    r"(.*\.)?position_ids$"
    r"|(.*\.)?(text_projection(\.weight)?|logit_scale)$"
    r"|model_ema\.|first_stage_model\.(loss|model_ema)\."
    r"|(\w*alphas_cumprod(_prev)?|betas|posterior_\w+|lvlb_weights|logvar|scale_factor|global_step)$"
)
_LEGACY_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEGACY_VAE_KEY = re.compile(r"(.*mid_block\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")


class Architecture(NamedTuple):
    """What tells Stable Diffusion's generations apart: shapes, whatever the file is called.

    Attributes:
        context_width: Width of the text embeddings that the UNet attends to; 0 where no attention was found.
        linear_projection: Whether the transformers' projections are linear layers (SD2, SDXL) or 1x1 convolutions (SD1).
    """

    context_width: int
    linear_projection: bool

    def __str__(self) -> str:
        generation = "SDXL" if self.context_width == 2048 else "SD2" if self.linear_projection else "SD1"
        return f"{generation}-type (context width {self.context_width})"


def architecture(shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """Tell the generation of a UNet from its tensors' shapes; the keys may be in either layout."""
    widths = [shape[-1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")]
    projections = [shape for key, shape in shapes.items() if key.endswith("proj_in.weight")]
    return Architecture(next(iter(widths), 0), any(len(shape) == 2 for shape in projections))


def normalise_ldm(tensors: LazyTensors) -> dict[str, LazyTensor]:
    """Rename the keys of an LDM single file to those of `key_maps` and drop leftovers.

    Raises:
        ValueError: The text encoder is one whose single-file layout has no table yet (SD2, SDXL).
    """
    for prefix, generation in ((_OPEN_CLIP_PREFIX, "SD2 (OpenCLIP)"), (_SDXL_PREFIX, "SDXL")):
        if any(key.startswith(prefix) for key in tensors):
            raise ValueError(
                f"the text encoder is that of {generation}; single files of that kind are not read: "
                "give the model in the diffusers layout (SD2), or another model"
            )
    return _renamed(tensors, _novelai)


def normalise_diffusers(component: str, tensors: LazyTensors) -> dict[str, LazyTensor]:
    """Rename the keys of one component in the diffusers layout to those of `key_maps` and drop leftovers."""
    rename = {"vae": _modern_vae, "text_encoder": _with_text_model}.get(component, str)
    return _renamed(tensors, rename)


def normalise_vae_file(tensors: LazyTensors) -> dict[str, LazyTensor]:
    """Rename the keys of a file that holds an LDM VAE, alone or within a whole checkpoint, to those of `key_maps`."""
    within = {key: tensor for key, tensor in tensors.items() if key.startswith(VAE_PREFIX)}
    return _renamed(within, str) if within else _renamed(tensors, lambda key: VAE_PREFIX + key)


def _renamed(tensors: LazyTensors, rename: Callable[[str], str]) -> dict[str, LazyTensor]:
    """Rename and drop leftovers; refuse a file in which two keys are the same tensor."""
    renamed: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        name = rename(key)
        if _LEFTOVERS.match(name):
            continue
        if name in renamed:
            raise ValueError(f"{key} is there twice, in two spellings; such a file was merged wrongly: use the original")
        renamed[name] = tensor
    return renamed


def _novelai(key: str) -> str:
    if not key.startswith(_NOVELAI_PREFIX) or key.startswith(TEXT_ENCODER_PREFIX):
        return key
    return TEXT_ENCODER_PREFIX + key.removeprefix(_NOVELAI_PREFIX)


def _modern_vae(key: str) -> str:
    match = _LEGACY_VAE_KEY.fullmatch(key)
    return f"{match[1]}.{_LEGACY_VAE_ATTENTION[match[2]]}.{match[3]}" if match else key


def _with_text_model(key: str) -> str:
    return key if key.startswith("text_model.") else f"text_model.{key}"
