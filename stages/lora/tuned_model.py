"""The model that is trained: loading it, making it ready, and writing what became of it."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.checkpoints.adapters.kohya_metadata import TRAINING
from stages.checkpoints.file_names import EMBEDDING_FILE, LORA_FILE, UNET_FILE, WEIGHTS
from stages.checkpoints.files.tensors import sha256
from stages.encoding.words import Learned, NewWord, write_learned
from stages.lora.adapters import add_adapter, write_lora
from stages.lora.data_init import Passes, make_passes
from stages.lora.examples import Examples
from stages.lora.fused import fuse_linear_layers
from stages.lora.processes import process_number
from stages.lora.run import Run
from stages.lora.text_encoder import TARGET_MODULES, with_text_encoder


@dataclass(frozen=True)
class Tuned:
    """A model made ready for training.

    Attributes:
        model: what is called: the UNet, or the UNet with its text encoder.
        parts: "unet" and, where it is trained, "text_encoder".
        first_weights: what `add_adapter` returned, by part; nothing where no adapter is trained.
        vectors: (n, D), of the word that is trained; None for none.
    """

    model: nn.Module
    parts: Mapping[str, nn.Module]
    first_weights: Mapping[str, Mapping[str, Tensor]]
    vectors: nn.Parameter | None = None


def load_unet(model: Path) -> UNet2DConditionModel:
    """Load the UNet alone of a model in diffusers layout, frozen, in float32, on the CPU."""
    unet: Any = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32, local_files_only=True)
    return unet.requires_grad_(False)


def prepare_model(run: Run) -> Tuned:
    """Load what is trained, make the weights that are trained the only ones that require a gradient, and move it to its place.

    The first weights are made on the CPU in float32, so that they are the same for every device and dtype.

    Raises:
        ValueError: the run's examples do not fit the UNet, or a target is not there.
    """
    tuned = _with_trained_weights(run)
    unet: Any = tuned.parts["unet"]
    cast_frozen(tuned.model, run.dtype)
    move(tuned.model, run.device)
    if run.config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if run.config.compile:  # the compiler joins operations by itself
        compile_blocks(unet, run.device)
    else:
        fuse_linear_layers(tuned.model, torch.float32 if run.autocasts else run.dtype)
    return tuned


def _with_trained_weights(run: Run) -> Tuned:
    config, prompts = run.config, run.trained_prompts
    unet = load_unet(run.model)
    for stream in run.streams:
        check_examples(unet, stream.examples)
    if config.tuned == "full":
        unet.requires_grad_(True)
        return Tuned(unet, {"unet": unet}, {})
    if config.tuned == "embedding" and prompts is not None:
        whole = with_text_encoder(unet, run.model, prompts)
        return Tuned(whole, {"unet": unet}, {}, whole.vectors)
    both = None if prompts is None else with_text_encoder(unet, run.model, prompts)
    passes = _passes(run, unet if both is None else both)
    first_weights = {"unet": add_adapter(unet, run.rank, config, config.target_modules, run.seed, passes)}
    if both is None:
        return Tuned(unet, {"unet": unet}, first_weights)
    if not config.train_text_encoder:
        return Tuned(both, {"unet": unet}, first_weights, both.vectors)
    plain = replace(config, rank_pattern={}, alpha_pattern={})  # they name layers of the UNet
    first_weights["text_encoder"] = add_adapter(both.text_encoder, run.rank, plain, TARGET_MODULES, run.seed, passes)
    if both.vectors is not None:
        both.vectors.requires_grad_(True)  # an adapter makes all else that there is not require one
    return Tuned(both, {"unet": unet, "text_encoder": both.text_encoder}, first_weights, both.vectors)


def _passes(run: Run, model: nn.Module) -> Passes | None:
    """The data through a model, which is moved to where it computes, if first weights come from there."""
    if not run.config.begins_with_data:
        return None
    model.to(run.device)
    return make_passes(run, model, load_noise_scheduler(run.model), process_number() == 0)


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model to where it is trained, with channels last, in which convolutions are faster.

    The factors of DoRA stay as they are: PEFT takes views of them that other memory does not allow.
    """
    moved: Any = model
    moved.to(device, memory_format=torch.channels_last)
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and any(layer.use_dora.values()):
            for parameter in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
                parameter.data = parameter.data.contiguous()


def cast_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the frozen weights; the trained ones stay in float32, because their updates are lost in 16 bits."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def compile_blocks(unet: Any, device: torch.device) -> None:
    """Compile the blocks that a UNet repeats, in place; they are compiled at their first call.

    Raises:
        ValueError: there is no compiler.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name):
        raise ValueError("compile: given True: there is no C++ compiler: install g++, or set it to false")
    unet.compile_repeated_blocks()


def check_examples(unet: Any, examples: Examples) -> None:
    """Refuse examples that were encoded for another kind of model.

    Raises:
        ValueError: the latents or the embeddings have another width than the UNet takes.
    """
    channels, width = examples.mean.shape[2], examples.prompt_embeds.shape[-1]
    if channels != unet.config["in_channels"]:
        raise ValueError(f"the latents have {channels} channels, the UNet takes {unet.config['in_channels']}: take its own VAE")
    if examples.prompt_embeds.is_floating_point() and width != unet.config["cross_attention_dim"]:
        raise ValueError(
            f"the prompts are embedded in {width} numbers, the UNet takes {unet.config['cross_attention_dim']}: "
            "take the text encoder of the same model"
        )


def load_noise_scheduler(model: Path) -> DDPMScheduler:
    """Load the noise schedule of a model in diffusers layout, whichever sampler it is stored for.

    Raises:
        ValueError: the model predicts something that the loss is not written for.
    """
    noise_scheduler: Any = DDPMScheduler.from_pretrained(model, subfolder="scheduler", local_files_only=True)
    prediction_type = noise_scheduler.config["prediction_type"]
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"{model / 'scheduler'}: prediction_type is {prediction_type}; only epsilon and v_prediction are trained"
        )
    return noise_scheduler


WITHOUT_AN_END = ("constant", "constant_with_warmup", "piecewise_constant")
"""Schedules whose learning rate does not depend on how many steps there will be."""


def base_metadata(run: Run, prediction_type: str) -> dict[str, Any]:
    """What a LoRA's metadata say of the model that it was trained on, of the training's settings and of its data."""
    instance, *of_class = (len(stream.examples) for stream in run.streams)
    without_effect = {
        *(["max_train_steps"] if run.config.lr_scheduler in WITHOUT_AN_END else []),
        *(["prior_loss_weight"] if not of_class else []),
    }
    settings = {name: value for name, value in run.config.of_weights.items() if name not in without_effect}
    training = {
        **settings,
        **run.data,
        "model": run.model.name,
        "rank": run.rank,
        "seed": run.seed,
        "steps": run.config.max_train_steps,
        "dtype": str(run.dtype).removeprefix("torch."),
        "images": instance,
        "class_images": sum(of_class),
        "prediction_type": prediction_type,
    }
    digests = {f"base_{part}_sha256": sha256(run.model / part / WEIGHTS[part]) for part in _read(run)}
    return {**digests, TRAINING: training}


def _read(run: Run) -> list[str]:
    """The parts of the model whose weights are told by their digest: a word is one of its text encoder."""
    return ["unet", "text_encoder"] if new_word(run) else ["unet"]


def weights_files(run: Run) -> list[str]:
    """The names of the files that hold what is trained, in the folder of a training's result; the first is what it is about."""
    of_unet = {"lora": [LORA_FILE], "full": [str(Path("unet") / UNET_FILE)], "embedding": []}[run.config.tuned]
    return [*([EMBEDDING_FILE] if new_word(run) else []), *of_unet]


def new_word(run: Run) -> NewWord | None:
    """The word that a run trains, if it does."""
    return run.trained_prompts.word if run.trained_prompts is not None else None


def write_weights(run: Run, tuned: Tuned, base: Mapping[str, Any] | None, name: str, path: Path) -> None:
    """Write what is trained, as it is now: a word, a LoRA, or all weights of the UNet.

    Args:
        run: whose it is.
        tuned: what is trained.
        base: what a LoRA's or a word's metadata say besides; None for a whole UNet.
        name: which of `weights_files`.
        path: of the file.
    """
    word = new_word(run)
    if name == EMBEDDING_FILE and word is not None and tuned.vectors is not None:
        write_learned(Learned(word.token, tuned.vectors, word.replaces, base or {}), path)
        return
    if base is not None:
        write_lora(tuned.parts, path, tuned.first_weights, base)
        return
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in tuned.parts["unet"].state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})


def write_rest(model: Path, folder: Path) -> None:
    """Make a folder with the weights of a UNet a whole model: all else of `model` beside it."""
    for path in sorted(model.iterdir()):
        if path.name != "unet":
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, folder / path.name)
    shutil.copyfile(model / "unet" / "config.json", folder / "unet" / "config.json")
