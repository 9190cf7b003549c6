"""The models that draw: loaded from a folder in diffusers layout, with what was trained put into them, and described."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from stages.checkpoints.adapters.lora_files import other_adapters, read_lora
from stages.checkpoints.file_names import (
    EMBEDDING_FILE,
    HISTORY_FILE,
    LORA_FILE,
    UNET_FILE,
    WEIGHTS,
    holds_whole_unet,
    lora_file,
)
from stages.checkpoints.files.tensors import sha256
from stages.drawing.config import SamplingConfig, sampling_of
from stages.drawing.lora_loading import ADAPTER, attach, load_tuned_unet, match
from stages.encoding.words import Learned, learned_file, read_learned
from stages.pipeline.config import RuntimeConfig
from stages.pipeline.recorded import Recorder
from stages.pipeline.torch_runtime import computation


@dataclass(frozen=True)
class Models:
    """The parts of a Stable Diffusion checkpoint that drawing takes, on one device and in one dtype.

    Attributes:
        unet: predicts noise.
        vae: turns latents into pictures.
        text_encoder: embeds prompts.
        tokenizer: of the text encoder.
        folder: in diffusers layout, that they come from.
        recorder: records the UNet's steps, if they are to be recorded.
        word: that the text encoder was taught, if it was.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    folder: Path
    recorder: Recorder | None = None
    word: Learned | None = None


def load_models(
    folder: Path, device: torch.device, dtype: torch.dtype = torch.float32, recorder: Recorder | None = None
) -> Models:
    """Load a checkpoint for inference.

    Args:
        folder: in diffusers layout.
        device: where it computes.
        dtype: of weights and activations.
        recorder: of the device, where steps are to be recorded.

    Raises:
        OSError: the folder, or one of its parts, is missing.
    """
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(f"{folder}: no {', '.join(missing)} in it; expected a model in diffusers layout")
    empty = [part for part in ("unet", "vae", "text_encoder") if not any((folder / part).glob("*model*"))]
    if empty:
        raise FileNotFoundError(
            f"{folder}: no weights of {' and '.join(empty)} in it, as in the checkpoint: it draws no images; leave it out of "
            "sweep.bases, or have base fill it in"
        )
    disable_progress_bar()  # of loading: a flash a part
    local: dict[str, Any] = {"local_files_only": True}
    unet: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype, **local)
    vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype, **local)
    text_encoder: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype, **local)
    for part in (unet, vae, text_encoder):
        part.to(device).requires_grad_(False).eval()
    return Models(
        unet, vae, text_encoder, CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", **local), folder, recorder
    )


def load_lora(models: Models, path: Path, lora_scale: float = 1.0) -> None:
    """Put what was trained into a model: adapters of the UNet and of the text encoder, or all weights of the UNet.

    Args:
        models: changed in place.
        path: a file in diffusers' or kohya's keys, or a folder with `pytorch_lora_weights.safetensors`, or with the `unet/`
            of a full fine-tuning. Each layer's rank and alpha come from the file's metadata or from its `.alpha` keys; without
            both, alpha is the rank.
        lora_scale: the factor on what training added; 0 is the model without it. Of DoRA it is, as in PEFT, the factor on the
            LoRA, and the lengths of the rows stay those that were learnt.

    Raises:
        OSError: the file is missing.
        ValueError: the file holds no LoRA weights, something that is not read here, or weights of another architecture.
    """
    from diffusers.utils import set_weights_and_activate_adapters

    file = lora_file(path)
    if holds_whole_unet(file):
        load_tuned_unet(models.unet, file, lora_scale)
        return
    parts = {"unet": models.unet, "text_encoder": models.text_encoder}
    if others := other_adapters(file):
        if lora_scale not in (0, 1):
            kind = next(iter(others.values()))["peft_type"]
            raise ValueError(f"{file}: {kind} has no strength: its scale is 1, or 0 for the model without it")
        if lora_scale:
            attach(parts, file)
        return
    if lora_scale == 0:
        match(parts, read_lora(file))
        return
    held = attach(parts, file)
    for name in held:
        set_weights_and_activate_adapters(parts[name], [ADAPTER], [lora_scale])
    if "unet" in held and models.unet.dtype == torch.float32:
        # A tenth less time an image. Half precision would round the small update away.
        models.unet.fuse_lora()
        models.unet.unload_lora()


def load_word(models: Models, path: Path) -> Models:
    """Teach a model a word (textual inversion), which is then read in prompts in the place of what it replaces.

    Args:
        models: their tokenizer and text encoder are changed in place.
        path: a file of this project, of diffusers or of A1111, or the folder of a training.

    Returns:
        the models that know it.

    Raises:
        OSError: the file is missing.
        ValueError: it is none, is for a text encoder of another width, or the tokenizer has its token already.
    """
    file = learned_file(path)
    learned = read_learned(file)
    load: Any = pipeline_of(models).load_textual_inversion
    try:
        load({learned.token: learned.vectors}, token=learned.token)
    except ValueError as error:
        table: Any = models.text_encoder.get_input_embeddings()
        width = table.weight.shape[1]
        given = f"its vectors have {learned.vectors.shape[1]} numbers, this model's {width}"
        raise ValueError(f"{file}: {given if learned.vectors.shape[1] != width else error}") from error
    return replace(models, word=learned)


def pipeline_of(models: Models, scheduler: Any = None) -> Any:
    """The pipeline of diffusers that has these parts."""
    make_pipeline: Any = StableDiffusionPipeline
    return make_pipeline(
        vae=models.vae,
        text_encoder=models.text_encoder,
        tokenizer=models.tokenizer,
        unet=models.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def describe(models: Models, config: SamplingConfig, runtime: RuntimeConfig) -> dict[str, Any]:
    """What an image depends on besides its prompt, its seeds and a LoRA: settings, digests of the weights, what computes."""
    digests = {f"{part}_sha256": sha256(models.folder / part / file) for part, file in WEIGHTS.items()}
    return {
        **sampling_of(config),
        **digests,
        **computation(runtime, models.unet.device),
        "model": models.folder.name,
    }


def describe_word(path: Path) -> dict[str, Any]:
    """What an image depends on of a word that was taught."""
    file = learned_file(path)
    learned = read_learned(file)
    told = {"embedding": _name(file), "embedding_sha256": sha256(file), "embedding_token": learned.token}
    return told | ({"embedding_replaces": learned.replaces} if learned.replaces else {})


def describe_lora(path: Path, lora_scale: float) -> dict[str, Any]:
    """The same of a LoRA."""
    return {"lora": lora_name(path), "lora_scale": lora_scale, "lora_sha256": sha256(lora_file(path))}


def lora_name(path: Path) -> str:
    """What a LoRA is called: as the folder of its training, with the step after which it was kept, or as its file."""
    return _name(lora_file(path))


def _name(file: Path) -> str:
    if file.name not in (LORA_FILE, UNET_FILE, EMBEDDING_FILE):
        return file.stem
    folder = file.parent.parent if holds_whole_unet(file) else file.parent
    kept = (folder.parent / HISTORY_FILE).is_file()
    return f"{folder.parent.name}-{folder.name}" if kept else folder.name
