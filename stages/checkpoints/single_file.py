"""Writing a model as one file in the LDM layout, which A1111 and ComfyUI read."""

from pathlib import Path

import numpy as np

from stages.checkpoints.components import Component
from stages.checkpoints.files.reading import read_json
from stages.checkpoints.files.tensors import LazyTensor
from stages.checkpoints.files.writing import write_safetensors
from stages.checkpoints.keys.key_maps import TEXT_ENCODER_PREFIX, component_specs, to_ldm
from stages.checkpoints.messages import shown
from stages.checkpoints.model import SCHEDULER, Model
from stages.checkpoints.modelspec import HASH, modelspec

# The noise schedule of SD1 and SD2, which every program takes that reads a single file; and what diffusers takes where the
# scheduler's config says nothing.
_EXPECTED = {
    "beta_schedule": ("scaled_linear", "linear"),
    "beta_start": (0.00085, 0.0001),
    "beta_end": (0.012, 0.02),
    "num_train_timesteps": (1000, 1000),
    "trained_betas": (None, None),
}
_MARKER = LazyTensor((0,), "F32", lambda: np.zeros(0, np.float32))


def unsaid(model: Model) -> list[str]:
    """Settings of the scheduler that a single file cannot hold, and that differ from what programs assume."""
    config = read_json(model.directory / SCHEDULER)
    said = {name: config.get(name, default) for name, (_, default) in _EXPECTED.items()}
    return [f"{name} {shown(said[name])}" for name, (usual, _) in _EXPECTED.items() if said[name] != usual]


def write_single_file(model: Model, out: Path, dtype: str, title: str = "", thumbnail: Path | None = None) -> None:
    """Write all components of a model, with what it predicts and the recipes of its parts, into one .safetensors file.

    Args:
        model: What to write.
        out: The file.
        dtype: Of the weights.
        title: What the model is called, in the file's metadata.
        thumbnail: An image that it drew, for them.

    Raises:
        ValueError: The text encoder is not that of SD1, whose single-file layout is the one known here.
    """
    _check_sd1(model.components["text_encoder"])
    tensors: dict[str, LazyTensor] = {}
    for name, component in model.components.items():
        tensors |= to_ldm(component.tensors, component_specs(name, component.config))
    tensors[f"{TEXT_ENCODER_PREFIX}embeddings.position_ids"] = _position_ids(model.components["text_encoder"])
    tensors |= dict.fromkeys(model.prediction.markers(), _MARKER)
    recipe = {name: component.recipe for name, component in model.components.items()}
    spec = modelspec(title, model.components["unet"].config.get("cross_attention_dim"), thumbnail=thumbnail)
    write_safetensors(out, tensors, dtype, recipe, metadata={**spec, **model.prediction.metadata()}, digests=HASH)


def _check_sd1(text_encoder: Component) -> None:
    if text_encoder.config.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise ValueError(
            f"{text_encoder.file}: the OpenCLIP text encoder of SD2; single files are written for SD1-type models only"
        )


def _position_ids(text_encoder: Component) -> LazyTensor:
    """A constant of the layout that older readers insist on, written anew because mergers have been known to spoil it."""
    length = text_encoder.config.get("max_position_embeddings", 77)
    return LazyTensor((1, length), "I64", lambda: np.arange(length, dtype=np.int64))
