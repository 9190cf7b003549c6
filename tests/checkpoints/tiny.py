"""Small random models in every form, written without torch or diffusers: what the tests of this room read."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from stages.checkpoints.keys.key_maps import component_specs, to_ldm

LETTERS = "abcdefghijklmnopqrstuvwxyz,"
VOCABULARY = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
WIDTH = 8

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [4, 8, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 2,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [4, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
    "sample_size": 16,
}
TEXT_ENCODER = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_act": "quick_gelu",
    "vocab_size": len(VOCABULARY),
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "bos_token_id": len(VOCABULARY) - 2,
    "eos_token_id": len(VOCABULARY) - 1,
    "pad_token_id": len(VOCABULARY) - 1,
}
CONFIGS = {"unet": UNET, "vae": VAE, "text_encoder": TEXT_ENCODER}
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_name_or_path": "/home/somebody/models/tiny",
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}

Weights = dict[str, dict[str, np.ndarray]]


def random_weights(seed: int = 0, configs: dict[str, dict] = CONFIGS, dtype: type = np.float32) -> Weights:
    """A model's tensors by component, under diffusers names."""
    generator = np.random.default_rng(seed)
    return {
        name: {spec.name: generator.normal(0, 0.2, spec.shape).astype(dtype) for spec in component_specs(name, config)}
        for name, config in configs.items()
    }


def ldm_weights(weights: Weights, configs: dict[str, dict] = CONFIGS) -> dict[str, np.ndarray]:
    """The same tensors under LDM names, in one dictionary."""
    tensors: dict[str, np.ndarray] = {}
    for name, component in weights.items():
        tensors |= to_ldm(component, component_specs(name, configs[name]))
    return tensors


def save_configs(folder: Path, configs: dict[str, dict] = CONFIGS, scheduler: dict = SCHEDULER) -> Path:
    """A diffusers directory without weights."""
    files = {f"{name}/config.json": config for name, config in configs.items()}
    files |= {"model_index.json": INDEX, "scheduler/scheduler_config.json": scheduler}
    files |= {"tokenizer/vocab.json": {token: index for index, token in enumerate(VOCABULARY)}}
    files |= {"tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}}
    for path, values in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(values))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return folder


def save_diffusers(folder: Path, weights: Weights, configs: dict[str, dict] = CONFIGS, scheduler: dict = SCHEDULER) -> Path:
    """A model in the diffusers layout."""
    save_configs(folder, configs, scheduler)
    for name, tensors in weights.items():
        save_file(tensors, folder / name / WEIGHTS[name])
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
