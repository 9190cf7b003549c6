"""Train the ancestor: the UNet and, with it, the text encoder, on four drawing styles at once.

Reads <work>/drawings and <work>/vae. Writes <work>/base, a Stable Diffusion pipeline in diffusers layout, fp16. Run again to
resume; `torchrun --standalone --nproc_per_node 2 -m stages.mini.training.train_ancestor` uses two processes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTokenizer

from stages.mini.training.denoiser import (
    Examples,
    TextToImage,
    batch_loss,
    build_noise_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    cache_latents,
    caption_corpus,
    load_examples,
)
from stages.mini.training.fitting import Plan, arguments_of, autocast, begin, budget_of, fit, forget, is_first, quicken
from stages.pipeline.outputs import atomic_directory

MINUTES = 80.0
BATCH_SIZE = 16
LEARNING_RATE = 2e-3
STYLE_PROBABILITY = 0.5
TRAINED_STYLES = ("adventurer", "micah", "toon-head", "personas")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save."""
    parser = arguments_of("python -m stages.mini.training.train_ancestor", __doc__, MINUTES)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="examples a step and process")
    options = parser.parse_args(arguments)
    device = begin(options)
    vae = AutoencoderKL.from_pretrained(options.work / "vae").to(device)  # pyright: ignore[reportArgumentType]
    _share_encoding(options.work, vae)
    examples = load_examples(options.work, vae.config.scaling_factor, TRAINED_STYLES)
    tokenizer = build_tokenizer(caption_corpus())
    model = TextToImage(build_unet(vae.config.latent_channels, options.tiny), build_text_encoder(tokenizer, options.tiny))
    model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.unet.set_attn_processor(AttnProcessor())
    quicken(model)
    plan = _plan(options)
    fit(model, lambda step: _loss(model, tokenizer, examples, step, options), plan)
    if is_first():
        save_pipeline(model, vae, tokenizer, options.work / "base")
        forget(plan.checkpoint)


def save_pipeline(model: TextToImage, vae: AutoencoderKL, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write the models as a Stable Diffusion pipeline, fp16."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half().cpu(),
        text_encoder=model.text_encoder.half().cpu(),
        tokenizer=tokenizer,
        unet=model.unet.half().cpu(),
        scheduler=build_noise_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    with atomic_directory(out) as folder:
        pipeline.save_pretrained(folder)
        tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))


def _share_encoding(work: Path, vae: AutoencoderKL) -> None:
    if not dist.is_initialized():
        cache_latents(work, vae, TRAINED_STYLES)
        return
    cache_latents(work, vae, TRAINED_STYLES[dist.get_rank() :: dist.get_world_size()])
    dist.barrier()


def _loss(model: TextToImage, tokenizer: CLIPTokenizer, examples: Examples, step: int, options: argparse.Namespace) -> Tensor:
    with autocast(options):
        return batch_loss(model, tokenizer, examples, step, options.batch_size, STYLE_PROBABILITY)


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        label="training the ancestor",
        budget=budget_of(options, MINUTES),
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        ema_decay=0.998,
        checkpoint=options.work / "base.pt",
    )


if __name__ == "__main__":
    main()
