"""The names that programs have for one tensor: all known ones become those of `key_maps`, and what is no weight is dropped."""

import re
from collections.abc import Callable, Sequence

from stages.checkpoints.files.tensors import LazyTensor, LazyTensors
from stages.checkpoints.keys.key_maps import TEXT_ENCODER_PREFIX, UNET_PREFIX, VAE_PREFIX
from stages.checkpoints.keys.open_clip import from_open_clip
from stages.checkpoints.messages import listed

# NovelAI's models and their descendants (AnythingV3, AbyssOrangeMix) leave out `text_model.`.
_NOVELAI_PREFIX = "cond_stage_model.transformer."
_NESTING = "state_dict."
_EMA_PREFIX = "model_ema."
_BARE_UNET_KEY = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|out)\.\d")
_DIFFUSERS_KEY = re.compile(r"(decoder\.)?(down|up)_blocks\.\d+\.(resnets|attentions)\.")

# Position ids are constants that some tools have averaged into nonsense; the rest is state of training.
_LEFTOVERS = re.compile(
    r"(.*\.)?position_ids$"
    r"|(.*\.)?(text_projection(\.weight)?|logit_scale)$"
    r"|model_ema\.|first_stage_model\.(loss|model_ema)\.|embedding_manager\.|denoiser\.sigmas$"
    r"|(\w*alphas_cumprod(_prev)?|betas|posterior_\w+|lvlb_weights|logvar|scale_factor)$"
    r"|(global_step|epoch|v_pred|ztsnr)$"
)
_LEGACY_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEGACY_VAE_KEY = re.compile(r"(.*mid_block\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")


def normalise_ldm(tensors: LazyTensors, text_layers: int) -> dict[str, LazyTensor]:
    """Rename the keys of an LDM single file to those of `key_maps` and drop leftovers.

    Args:
        tensors: As the file names them.
        text_layers: How many layers the text encoder's config describes; a file of SD2 holds one more, which is unused.
    """
    tensors = from_open_clip(tensors, text_layers)
    if not any(key.startswith(UNET_PREFIX) for key in tensors):
        tensors = {UNET_PREFIX + key if _BARE_UNET_KEY.match(key) else key: value for key, value in tensors.items()}
    return _renamed(tensors, _novelai)


def without_nesting(tensors: LazyTensors) -> LazyTensors:
    """Take off the prefix that a nested `state_dict` leaves in flat files."""
    if not tensors or not all(key.startswith(_NESTING) for key in tensors):
        return tensors
    return {key.removeprefix(_NESTING): tensor for key, tensor in tensors.items()}


def with_ema(tensors: LazyTensors, names: Sequence[str]) -> dict[str, LazyTensor]:
    """Put the exponential moving average of the UNet's weights in the place of the weights.

    Args:
        tensors: Of an LDM single file.
        names: The UNet's keys in that layout. Those of its average have no dots: `model_ema.diffusion_modelout2bias`.

    Raises:
        ValueError: The file holds no average, or only a part of it.
    """
    averages = {name: _EMA_PREFIX + name.removeprefix("model.").replace(".", "") for name in names}
    missing = sorted(average for average in averages.values() if average not in tensors)
    if len(missing) == len(averages):
        raise ValueError(f"holds no EMA weights ({_EMA_PREFIX}…): set ema to false")
    if missing:
        raise ValueError(f"EMA weights are incomplete; missing {len(missing)}: {listed(missing)}")
    return {**tensors, **{name: tensors[average] for name, average in averages.items()}}


def has_ema(tensors: LazyTensors) -> bool:
    """Whether a single file holds the exponential moving average of its UNet's weights."""
    return any(key.startswith(_EMA_PREFIX) for key in without_nesting(tensors))


def is_diffusers(tensors: LazyTensors) -> bool:
    """Whether a file holds a UNet or a VAE under the names of the diffusers layout."""
    return any(_DIFFUSERS_KEY.match(key) for key in tensors)


def component_of(tensors: LazyTensors) -> str:
    """Which component a file in the diffusers layout holds: unet, vae or text_encoder."""
    if any(key.startswith("text_model.") for key in tensors):
        return "text_encoder"
    return "vae" if any(key.startswith("decoder.") for key in tensors) else "unet"


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
