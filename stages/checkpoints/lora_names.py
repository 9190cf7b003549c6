"""What the files and the metadata of adapters are called; those who write them and those who read them take it from here."""

LORA_FILE = "pytorch_lora_weights.safetensors"
"""diffusers' name for the file of a LoRA."""
UNET_FILE = "diffusion_pytorch_model.safetensors"
"""diffusers' name for the weights of a UNet, which a full fine-tuning writes instead."""
METADATA_KEY = "lora_adapter_metadata"
"""The metadata key that diffusers' loader reads PEFT's settings from, as JSON, by component: `unet.lora_alpha`."""
