"""The files of the fine-tunes: single files with LDM keys, a .safetensors as people share them and a .ckpt as in 2022."""

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save
from torch import Tensor
from transformers import CLIPTextModel

from stages.checkpoints.keys.key_maps import TEXT_ENCODER_PREFIX, component_specs, to_ldm
from stages.pipeline.outputs import atomic_file

OLD_TEXT_ENCODER_PREFIX = TEXT_ENCODER_PREFIX.removesuffix("text_model.")
LIGHTNING_MODULE = "pytorch_lightning.callbacks.model_checkpoint"


def ldm_state_dict(unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel) -> dict[str, Tensor]:
    """The models' weights under LDM keys, fp16, with the position_ids that such files have."""
    encoder = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in text_encoder.state_dict().items()}
    encoder.pop("text_model.embeddings.position_ids", None)
    parts = [
        ("unet", unet.state_dict(), dict(unet.config)),
        ("vae", vae.state_dict(), dict(vae.config)),
        ("text_encoder", encoder, text_encoder.config.to_dict()),
    ]
    tensors: dict[str, Tensor] = {}
    for component, weights, config in parts:
        tensors |= to_ldm(weights, component_specs(component, config))
    tensors = {key: value.detach().half().contiguous() for key, value in tensors.items()}
    positions = torch.arange(text_encoder.config.max_position_embeddings)[None]
    return tensors | {f"{TEXT_ENCODER_PREFIX}embeddings.position_ids": positions}


def write_safetensors(tensors: Mapping[str, Tensor], out: Path) -> None:
    """Write a .safetensors file."""
    with atomic_file(out) as part:
        part.write_bytes(save(dict(tensors), metadata={"format": "pt"}))


def write_ckpt(tensors: Mapping[str, Tensor], global_step: int, out: Path) -> None:
    """Write a .ckpt as trainers of 2022 left them: older text-encoder keys, and a callback's class and state in the pickle."""
    state_dict = {_old_key(key): value for key, value in tensors.items()}
    with _lightning_stub() as callback:
        state = {"monitor": None, "best_model_score": None, "current_score": None, "dirpath": "checkpoints"}
        checkpoint: dict[str, Any] = {
            "epoch": 0,
            "global_step": global_step,
            "pytorch-lightning_version": "1.4.2",
            "callbacks": {callback: state},
            "state_dict": state_dict,
        }
        file = io.BytesIO()
        torch.save(checkpoint, file)
    with atomic_file(out) as part:
        part.write_bytes(file.getvalue())


def _old_key(key: str) -> str:
    return key.replace(TEXT_ENCODER_PREFIX, OLD_TEXT_ENCODER_PREFIX)


@contextmanager
def _lightning_stub() -> Iterator[type]:
    """A class that pickles as pytorch_lightning's ModelCheckpoint, without that package."""
    names = [LIGHTNING_MODULE.rsplit(".", depth)[0] for depth in (2, 1, 0)]
    before = {name: sys.modules.get(name) for name in names}
    stub = type("ModelCheckpoint", (), {"__module__": LIGHTNING_MODULE})
    try:
        sys.modules.update({name: ModuleType(name) for name in names})
        sys.modules[LIGHTNING_MODULE].ModelCheckpoint = stub  # pyright: ignore[reportAttributeAccessIssue]
        yield stub
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
