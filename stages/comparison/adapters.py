"""What training made of a model, put into it: adapters of every kind that PEFT has, or all weights of the UNet."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

LORA_FILE = "pytorch_lora_weights.safetensors"
UNET_FILE = "diffusion_pytorch_model.safetensors"
METADATA_KEY = "lora_adapter_metadata"
ADAPTER = "lora"


def lora_file(path: Path) -> Path:
    """The file with what was trained: `path` itself, or the LoRA or else the UNet in the folder `path`.

    Raises:
        FileNotFoundError: there is none.
    """
    files = [path / LORA_FILE, path / "unet" / UNET_FILE] if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            return file
    raise FileNotFoundError(f"{files[0]}: no such LoRA file")


def holds_whole_unet(file: Path) -> bool:
    """Whether the file is the UNet of a full fine-tuning, by its name."""
    return file.name == UNET_FILE


@torch.no_grad()
def load_tuned_unet(unet: nn.Module, file: Path, scale: float) -> None:
    """Move the weights of a UNet to those in a file: all the way at scale 1, not at all at 0.

    Raises:
        ValueError: the file is of another architecture.
    """
    weights, tuned = unet.state_dict(), load_file(file)
    if {name: tensor.shape for name, tensor in weights.items()} != {name: tensor.shape for name, tensor in tuned.items()}:
        raise ValueError(f"{file}: its weights do not fit this UNet; it was made from another architecture")
    for name, tensor in weights.items():
        target = tuned[name].to(tensor.device)
        tensor.copy_(target if scale == 1 else torch.lerp(tensor.float(), target.float(), scale))


def attach(parts: Mapping[str, nn.Module], file: Path) -> list[str]:
    """Add the adapters of a LoRA file to the parts of a model that it holds weights for.

    diffusers' own loader does it where it can: it refuses LoHa and LoKr in files of this kind and drops the magnitudes of
    DoRA on a text encoder; those go through PEFT.

    Args:
        parts: "unet" and "text_encoder", changed in place.
        file: in diffusers' or kohya's keys. Rank and alpha come from its metadata or from its `.alpha` keys.

    Returns:
        The names of the parts that the file holds weights for.

    Raises:
        OSError: the file is not safetensors.
        ValueError: the file holds no LoRA weights, or those of another architecture.
    """
    settings = read_adapter_settings(file)
    if any(_is_for_peft(settings, name) for name in parts):
        state_dict, network_alphas = load_file(file), None
    else:
        state_dict, network_alphas, settings = _read_by_diffusers(file)
    held = [name for name in parts if any(key.startswith(f"{name}.") for key in state_dict)]
    if not held:
        raise ValueError(f"{file}: holds no LoRA weights for a UNet or a text encoder")
    try:
        for name in held:
            if settings and _is_for_peft(settings, name):
                _attach_by_peft(parts[name], _of_part(state_dict, name), _of_part(settings, name))
            else:
                _attach_by_diffusers(name, parts[name], state_dict, network_alphas, settings)
            parts[name].eval()  # the adapter's new layers begin in training mode, with dropout where it has one
    except RuntimeError as error:
        raise ValueError(f"{file}: does not fit this model: {' '.join(str(error).split())[:300]}") from error
    return held


def read_adapter_settings(file: Path) -> dict[str, Any]:
    """PEFT's settings by part, such as `unet.lora_alpha`; empty if the file has none, or cannot be read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return json.loads((tensors.metadata() or {}).get(METADATA_KEY, "{}"))
    except Exception:  # whatever safetensors raises; diffusers' loader says what is wrong with the file
        return {}


def _is_for_peft(settings: Mapping[str, Any], part: str) -> bool:
    """Whether diffusers' loader would refuse the adapter or get it wrong."""
    kind = settings.get(f"{part}.peft_type", "LORA")
    return kind != "LORA" or (part == "text_encoder" and bool(settings.get(f"{part}.use_dora")))


def _of_part(values: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The entries of one part, without its prefix."""
    return {key.removeprefix(f"{part}."): value for key, value in values.items() if key.startswith(f"{part}.")}


def _attach_by_peft(model: Any, state_dict: dict[str, Tensor], settings: dict[str, Any]) -> None:
    from peft import PeftConfig, set_peft_model_state_dict

    try:
        model.add_adapter(PeftConfig.from_peft_type(**settings), adapter_name=ADAPTER)
    except (TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from error
    outcome = set_peft_model_state_dict(model, state_dict, ADAPTER)
    if outcome.unexpected_keys:
        raise RuntimeError(f"it has no {outcome.unexpected_keys[0]}")


def _read_by_diffusers(file: Path) -> tuple[Any, Any, Any]:
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin

    loader: Any = StableDiffusionLoraLoaderMixin
    return loader.lora_state_dict(
        file.parent, weight_name=file.name, use_safetensors=True, local_files_only=True, return_lora_metadata=True
    )


def _attach_by_diffusers(name: str, model: Any, state_dict: Any, network_alphas: Any, settings: Any) -> None:
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin

    loader: Any = StableDiffusionLoraLoaderMixin
    load = loader.load_lora_into_unet if name == "unet" else loader.load_lora_into_text_encoder
    load(state_dict, network_alphas, **{name: model}, adapter_name=ADAPTER, metadata=settings)
