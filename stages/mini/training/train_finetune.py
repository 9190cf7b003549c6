"""Fine-tune the ancestor to draw any prompt in one style, as a single-file checkpoint in the LDM layout.

Reads <work>/drawings, <work>/vae and <work>/base. Writes <work>/anime.safetensors or <work>/toon.ckpt, fp16; the
latter with what old checkpoints carry besides weights. Run again to resume; the two styles may be trained at the same time.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from stages.mini.training.denoiser import Examples, TextToImage, batch_loss, cache_latents, load_examples
from stages.mini.training.finetune_files import ldm_state_dict, write_ckpt, write_safetensors
from stages.mini.training.fitting import Plan, arguments_of, autocast, begin, budget_of, fit, forget, is_first, quicken

MINUTES = 15.0
BATCH_SIZE = 16
LEARNING_RATE = 1e-3
STYLE_PROBABILITY = 0.15


class FineTune(NamedTuple):
    """The drawing style that a fine-tune learns and the file it is shipped as."""

    style: str
    file_name: str


FINE_TUNES = {"anime": FineTune("adventurer", "anime.safetensors"), "toon": FineTune("micah", "toon.ckpt")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save."""
    parser = arguments_of("python -m stages.mini.training.train_finetune", __doc__, MINUTES)
    parser.add_argument("--style", choices=sorted(FINE_TUNES), required=True)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="examples a step and process")
    options = parser.parse_args(arguments)
    device = begin(options)
    fine_tune = FINE_TUNES[options.style]
    vae = AutoencoderKL.from_pretrained(options.work / "vae")
    cache_latents(options.work, vae, [fine_tune.style])
    examples = load_examples(options.work, vae.config.scaling_factor, [fine_tune.style])
    tokenizer = CLIPTokenizer.from_pretrained(options.work / "base" / "tokenizer")
    model = _ancestor(options).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.unet.set_attn_processor(AttnProcessor())
    quicken(model)
    plan = _plan(options)
    steps = fit(model, lambda step: _loss(model, tokenizer, examples, step, options), plan)
    if not is_first():
        return
    out = options.work / fine_tune.file_name
    tensors = ldm_state_dict(model.unet.cpu(), vae, model.text_encoder.cpu())
    if out.suffix == ".ckpt":
        write_ckpt(tensors, steps, out)
    else:
        write_safetensors(tensors, out)
    forget(plan.checkpoint)


def _ancestor(options: argparse.Namespace) -> TextToImage:
    base = options.work / "base"
    text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32, attn_implementation="eager")
    text_encoder.requires_grad_(False)
    return TextToImage(UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.float32).train(), text_encoder)


def _loss(model: TextToImage, tokenizer: CLIPTokenizer, examples: Examples, step: int, options: argparse.Namespace) -> Tensor:
    with autocast(options):
        return batch_loss(model, tokenizer, examples, step, options.batch_size, STYLE_PROBABILITY)


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        label=f"fine-tuning {options.style}",
        budget=budget_of(options, MINUTES),
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        ema_decay=0.998,
        checkpoint=options.work / f"{options.style}.pt",
    )


if __name__ == "__main__":
    main()
