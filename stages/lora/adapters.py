"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) on a UNet, through PEFT, and their files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

LORA_FILE = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"
"""The metadata key that diffusers' loader reads rank and alpha from; it must stay the only one (see `write_lora`)."""


def load_unet(model: Path) -> UNet2DConditionModel:
    """Load the UNet alone of a model in diffusers layout, frozen, in float32, on the CPU."""
    unet: Any = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32, local_files_only=True)
    return unet.requires_grad_(False)


def add_lora(
    unet: UNet2DConditionModel,
    rank: int,
    lora_alpha: float | Literal["rank"],
    target_modules: Sequence[str],
    init_lora_weights: str,
    seed: int,
) -> None:
    """Add an adapter that at first changes nothing; its weights are then the only ones that require a gradient.

    Args:
        unet: on the CPU in float32, so that its first weights are the same for every device and dtype.
        rank: of each adapter matrix.
        lora_alpha: the adapter's output is scaled by lora_alpha / rank; "rank" makes that 1.
        target_modules: layers that get an adapter, by the end of their names.
        init_lora_weights: "gaussian" (standard deviation 1 / rank) or "kaiming" (PEFT's default).
        seed: of the first weights.

    Raises:
        ValueError: a target names no layer of this UNet.
    """
    names = [name for name, _ in unet.named_modules()]
    for target in target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ValueError(
                f"target_modules: {target!r} names no layer of this UNet; attention's are to_q, to_k, to_v, to_out.0"
            )
    torch.manual_seed(seed)
    unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank if lora_alpha == "rank" else lora_alpha,  # pyright: ignore[reportArgumentType]
            target_modules=list(target_modules),
            init_lora_weights="gaussian" if init_lora_weights == "gaussian" else True,
        )
    )


def trained_parameters(unet: UNet2DConditionModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


def cast_frozen(unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
    """Cast the frozen weights; the trained ones stay in float32, because their updates are lost in 16 bits."""
    for parameter in unet.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def write_lora(unet: UNet2DConditionModel, path: Path) -> None:
    """Write the adapter's weights as a file for `StableDiffusionPipeline.load_lora_weights`.

    The same weights give the same bytes, and no path gets in: diffusers' own `save_lora_weights` writes several metadata
    keys, which safetensors orders at random, sets in the order of their hashes, and the folder that the model came from.
    Without metadata the loader would take alpha = rank.
    """
    weights = {f"unet.{name}": tensor.contiguous().cpu() for name, tensor in get_peft_model_state_dict(unet).items()}
    settings = {f"unet.{name}": _plain(value) for name, value in unet.peft_config["default"].to_dict().items()}
    settings["unet.base_model_name_or_path"] = None
    save_file(weights, path, metadata={METADATA_KEY: json.dumps(settings, sort_keys=True, default=str)})


def _plain(value: Any) -> Any:
    """Sets and tuples as sorted lists, all else as it is."""
    return sorted(value) if isinstance(value, set | tuple | list) else value
