"""What the files of a model, of a LoRA and of a training are called, for those who write them and those who read them."""

from pathlib import Path

LORA_FILE = "pytorch_lora_weights.safetensors"
"""diffusers' name for the file of a LoRA."""
UNET_FILE = "diffusion_pytorch_model.safetensors"
"""diffusers' name for the weights of a UNet, which a full fine-tuning writes instead."""
EMBEDDING_FILE = "learned_embeds.safetensors"
"""diffusers' name for the file of a textual inversion."""
WEIGHTS = {"unet": UNET_FILE, "vae": UNET_FILE, "text_encoder": "model.safetensors"}
"""The file with the weights of each part of a model in the diffusers layout."""
LORA_METADATA_KEY = "lora_adapter_metadata"
"""The metadata key that diffusers' loader reads PEFT's settings from, as JSON, by component: `unet.lora_alpha`."""
HISTORY_FILE = "history.csv"
"""The course of a training, beside its result."""
PREVIEWS = "previews"
"""The folder of the images that a training drew on the way, beside its result: p<prompt index>-step<step>.png."""


def lora_file(path: Path) -> Path:
    """The file with what was trained: `path` itself, or the LoRA or else the UNet in the directory `path`.

    Raises:
        FileNotFoundError: There is none.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or directory: give a LoRA's file, or the directory that a training wrote"
        )
    files = [path / LORA_FILE, path / "unet" / UNET_FILE] if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            return file
    raise FileNotFoundError(f"{files[0]}: no such LoRA file: give a LoRA's file, or the directory that a training wrote")


def trained_file(folder: Path) -> Path:
    """The file with what was trained in the directory of a training: its LoRA or its UNet, else the word that it taught.

    Raises:
        FileNotFoundError: There is none.
    """
    word = folder / EMBEDDING_FILE
    return word if word.is_file() and not (folder / LORA_FILE).is_file() else lora_file(folder)


def holds_whole_unet(file: Path) -> bool:
    """Whether the file is the UNet of a full fine-tuning, by its name."""
    return file.name == UNET_FILE
