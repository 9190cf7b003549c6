"""Text-to-image sampling by `StableDiffusionPipeline`, from a folder in diffusers layout.

Each image has a random generator of its own, seeded with its seed, from which the initial noise comes first: so variants of a
model that are given the same seeds start from the same noise. Images of one prompt never share a batch with another prompt's,
so editing one prompt leaves the bytes of the others alone.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
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
from stages.drawing.noise_schedulers import NOISE_SCHEDULERS
from stages.drawing.recorded_unet import recorded
from stages.encoding.data_warnings import too_long
from stages.encoding.latents import images_together, vae_scale_factor
from stages.encoding.prompt_syntax import Syntax
from stages.encoding.prompts import embed_prompts, token_counts
from stages.encoding.words import Learned, learned_file, read_learned
from stages.pipeline.config import RuntimeConfig
from stages.pipeline.recorded import Recorder
from stages.pipeline.torch_runtime import computation
from stages.pipeline.wording import in_place

logger = logging.getLogger(__name__)


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
    load: Any = _pipeline(models).load_textual_inversion
    try:
        load({learned.token: learned.vectors}, token=learned.token)
    except ValueError as error:
        table: Any = models.text_encoder.get_input_embeddings()
        width = table.weight.shape[1]
        given = f"its vectors have {learned.vectors.shape[1]} numbers, this model's {width}"
        raise ValueError(f"{file}: {given if learned.vectors.shape[1] != width else error}") from error
    return replace(models, word=learned)


def describe_word(path: Path) -> dict[str, Any]:
    """What an image depends on of a word that was taught."""
    file = learned_file(path)
    learned = read_learned(file)
    told = {"embedding": _name(file), "embedding_sha256": sha256(file), "embedding_token": learned.token}
    return told | ({"embedding_replaces": learned.replaces} if learned.replaces else {})


def describe(models: Models, config: SamplingConfig, runtime: RuntimeConfig) -> dict[str, Any]:
    """What an image depends on besides its prompt, its seeds and a LoRA: settings, digests of the weights, what computes."""
    digests = {f"{part}_sha256": sha256(models.folder / part / file) for part, file in WEIGHTS.items()}
    return {
        **sampling_of(config),
        **digests,
        **computation(runtime, models.unet.device),
        "model": models.folder.name,
    }


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


def batch_of(seeds: Sequence[int], seed: int, batch_size: int) -> list[int]:
    """The seeds that a seed is drawn together with, itself among them: the last bits of an image depend on them."""
    start = list(seeds).index(seed) // batch_size * batch_size
    return list(seeds[start : start + batch_size])


def encode_prompt(models: Models, prompt: str, clip_skip: int = 0, syntax: Syntax = "plain") -> Tensor:
    """Embed one prompt.

    Returns:
        prompt_embeds: (1, 77, D), after the text encoder's final layer norm, on its device; with the syntax of A1111 it may be
            several times as long.
    """
    if models.word is not None:
        prompt = in_place(prompt, models.word.replaces, models.word.token)
    if syntax == "a1111":
        from stages.encoding.weighted_prompts import embed_weighted

        return embed_weighted(models.tokenizer, models.text_encoder, prompt, clip_skip).to(models.text_encoder.device)
    (tokens,) = token_counts(models.tokenizer, [prompt])
    for problem in too_long("prompt", {prompt: tokens}, models.tokenizer.model_max_length):
        logger.warning(problem)
    embeds = embed_prompts(models.tokenizer, models.text_encoder, [prompt], clip_skip, batch_size=1)
    return embeds.to(models.text_encoder.device)


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """A random generator for each image, on the CPU, so that every device gets the same noise."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def initial_latents(models: Models, of_images: Sequence[torch.Generator], resolution: int) -> Tensor:
    """Draw the noise that sampling starts from: (B, C, h, w), unit variance, float32, each image's from its own generator."""
    side = resolution // vae_scale_factor(models.vae)
    shape = (1, models.unet.config["in_channels"], side, side)
    return torch.cat([torch.randn(shape, generator=generator) for generator in of_images])


def draw(models: Models, prompts: Sequence[str], seeds: Sequence[int], config: SamplingConfig) -> Iterator[Image.Image]:
    """Draw every prompt with every seed, prompt by prompt.

    Raises:
        ValueError: `clip_skip` leaves out as many layers as the text encoder has; raised before the first image.
    """
    negative_prompt_embeds = encode_prompt(models, config.negative_prompt, config.clip_skip, config.prompt_syntax)
    return _draw(models, prompts, negative_prompt_embeds, seeds, config)


def _draw(
    models: Models, prompts: Sequence[str], negative_prompt_embeds: Tensor, seeds: Sequence[int], config: SamplingConfig
) -> Iterator[Image.Image]:
    with recorded(models.unet, models.recorder):
        for prompt in prompts:
            prompt_embeds = encode_prompt(models, prompt, config.clip_skip, config.prompt_syntax)
            negative_embeds = negative_prompt_embeds
            if prompt_embeds.shape != negative_embeds.shape:
                from stages.encoding.weighted_prompts import of_one_length

                empty = encode_prompt(models, "", config.clip_skip, config.prompt_syntax)
                prompt_embeds, negative_embeds = of_one_length(prompt_embeds, negative_embeds, empty)
            for start in range(0, len(seeds), config.batch_size):
                batch = seeds[start : start + config.batch_size]
                yield from sample(models, prompt_embeds, negative_embeds, batch, config)


def sample(
    models: Models, prompt_embeds: Tensor, negative_prompt_embeds: Tensor, seeds: Sequence[int], config: SamplingConfig
) -> list[Image.Image]:
    """Draw one prompt with several seeds in one batch."""
    return decode_latents(models.vae, denoise(models, prompt_embeds, negative_prompt_embeds, seeds, config))


@torch.inference_mode()
def denoise(
    models: Models, prompt_embeds: Tensor, negative_prompt_embeds: Tensor, seeds: Sequence[int], config: SamplingConfig
) -> Tensor:
    """Latents with several seeds, denoised together.

    Args:
        models: from `load_models`; the text encoder and the tokenizer are not used.
        prompt_embeds: (1, 77, D), of the one prompt, or (B, 77, D), of one an image.
        negative_prompt_embeds: (1, 77, D), of the negative prompt.
        seeds: one an image.
        config: `batch_size`, `negative_prompt` and `clip_skip` have done their work before.

    Returns:
        latents: (B, C, h, w), times the VAE's scaling factor.
    """
    of_images = generators(seeds)
    pipeline = _pipeline(models, make_noise_scheduler(models.folder, config.noise_scheduler))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt_embeds=prompt_embeds.expand(len(seeds), -1, -1),
        negative_prompt_embeds=negative_prompt_embeds.expand(len(seeds), -1, -1),
        latents=initial_latents(models, of_images, config.resolution).to(prompt_embeds.dtype),
        generator=of_images,
        height=config.resolution,
        width=config.resolution,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        output_type="latent",
    ).images


def _pipeline(models: Models, scheduler: Any = None) -> Any:
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


def make_noise_scheduler(folder: Path, name: str) -> Any:
    """The noise scheduler called `name`, with the betas and the prediction type of the checkpoint.

    Where the checkpoint's noise schedule ends in noise alone, images begin there (Lin et al. 2023, section 3.3,
    arXiv:2305.08891).

    Raises:
        ValueError: the scheduler cannot begin there.
    """
    import diffusers

    found = NOISE_SCHEDULERS[name]
    make = getattr(diffusers, found.class_name)
    config = make.load_config(folder, subfolder="scheduler", local_files_only=True)
    settings = dict(found.settings)
    if config.get("rescale_betas_zero_snr"):
        if not found.zero_snr:
            raise ValueError(
                f"noise_scheduler: given {name!r}: {folder.name} begins in noise alone (rescale_betas_zero_snr), which "
                f"{found.class_name} cannot: take ddim, euler or dpmsolver++"
            )
        settings["timestep_spacing"] = "trailing"
    return make.from_config(config, **settings)


@torch.inference_mode()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> list[Image.Image]:
    """Turn latents (B, C, h, w), times the VAE's scaling factor, into RGB images.

    Raises:
        ValueError: the VAE gave something that is no number, as some do in float16.
    """
    scaled = latents.to(vae.dtype) / vae.config["scaling_factor"]
    scale = vae_scale_factor(vae)
    together = images_together(len(scaled), (scale * scaled.shape[3], scale * scaled.shape[2]))
    images = torch.cat([vae.decode(part, return_dict=False)[0] for part in scaled.split(together)])
    if not images.isfinite().all():
        raise ValueError(f"an image came out as NaN in {vae.dtype}; set runtime.dtype to float32 or bfloat16")
    images_of: Any = VaeImageProcessor().postprocess
    return images_of(images, output_type="pil")
