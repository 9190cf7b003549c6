"""What the files, the metadata and the layers of adapters are called, for those who write them and those who read them."""

import re
from collections.abc import Iterable

LORA_FILE = "pytorch_lora_weights.safetensors"
"""diffusers' name for the file of a LoRA."""
UNET_FILE = "diffusion_pytorch_model.safetensors"
"""diffusers' name for the weights of a UNet, which a full fine-tuning writes instead."""
METADATA_KEY = "lora_adapter_metadata"
"""The metadata key that diffusers' loader reads PEFT's settings from, as JSON, by component: `unet.lora_alpha`."""


def first_pattern(patterns: Iterable[str], module: str) -> str | None:
    """The pattern that PEFT takes for a layer: the first one that stands for the end of its name."""
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", module)), None)
