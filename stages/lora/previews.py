"""Images of fixed prompts from fixed noise, drawn while training, so that over-fitting is seen.

The text encoder is in memory before training only (unless it is trained), the VAE only while images are drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.drawing.cells import write_png
from stages.drawing.sampling import Models, Sampling, sample
from stages.encoding.latents import load_vae
from stages.encoding.prompts import embed_prompts, load_text_encoder
from stages.lora.config import TrainingConfig
from stages.lora.text_encoder import UNetWithTextEncoder
from stages.pipeline.seals import sealed_file

SAMPLES = "samples"
"""The folder of the images, beside the checkpoint and in the stage's output: p<prompt index>-step<step>.png."""
NOISE_SCHEDULER, INFERENCE_STEPS, SEED = "dpmsolver++", 12, 0


@dataclass(frozen=True)
class SampleSize:
    """What the images on the way must have in common with the training images and their prompts."""

    resolution: int
    clip_skip: int


@dataclass(frozen=True)
class Sampler:
    """Draws the prompts of a run with the weights as they are.

    Attributes:
        model: the folder, in diffusers layout, of what is tuned.
        tuned: what is trained: the UNet, or the UNet with its text encoder.
        embed: the embeddings (1 + N, L, D) of "" and of the N prompts.
        config: the run's settings.
        size: of the images.
        dtype: of the UNet's computation.
        folder: for the images.
    """

    model: Path
    tuned: nn.Module
    embed: Callable[[], Tensor]
    config: TrainingConfig
    size: SampleSize
    dtype: torch.dtype
    folder: Path

    def __call__(self, step: int) -> None:
        """Draw and write an image of each prompt; training goes on as if this had not been."""
        sampling = Sampling(
            NOISE_SCHEDULER, INFERENCE_STEPS, self.config.sample_guidance_scale, self.size.resolution, 1, self.size.clip_skip
        )
        self.tuned.eval()
        unet: Any = SampledUNet(self.tuned, self.dtype)
        nothing: Any = None
        models = Models(unet, load_vae(self.model / "vae", unet.device), nothing, nothing, self.model)
        with unet.autocast():
            empty, *embeds = self.embed().to(unet.device, torch.float32)[:, None]
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, (prompt, prompt_embeds) in enumerate(zip(self.config.sample_prompts, embeds, strict=True)):
            with torch.compiler.set_stance("force_eager"):
                (image,) = sample(models, prompt_embeds, empty, [SEED], sampling)
            text = {"prompt": prompt, "step": str(step), "seed": str(SEED)}
            with sealed_file(self.folder / f"p{index}-step{step:06d}.png") as part:
                write_png(image, part, text)
        self.tuned.train()


class SampledUNet:
    """A UNet in training, called as sampling calls one: float32 outside, the computation's dtype inside."""

    def __init__(self, tuned: nn.Module, dtype: torch.dtype) -> None:
        self.unet: Any = tuned.unet if isinstance(tuned, UNetWithTextEncoder) else tuned
        self.device, self.dtype, self.config = self.unet.device, torch.float32, self.unet.config
        self.computed_in = dtype

    def autocast(self) -> torch.autocast:
        """What a training step computes in."""
        return torch.autocast(self.device.type, self.computed_in, enabled=self.computed_in != torch.float32)

    def __call__(self, *arguments: Tensor, return_dict: bool) -> tuple[Tensor, ...]:
        """The UNet's prediction."""
        with self.autocast():
            return (self.unet(*arguments, return_dict=return_dict)[0].float(),)


def prompt_embedder(model: Path, tuned: nn.Module, config: TrainingConfig, clip_skip: int) -> Callable[[], Tensor]:
    """How the prompts are embedded: now, once for all; or each time, by the text encoder that is trained.

    Raises:
        ValueError: as many layers would be left out as the text encoder has.
    """
    prompts = ["", *config.sample_prompts]
    tokenizer, text_encoder = load_text_encoder(model, torch.device("cpu"))
    if isinstance(tuned, UNetWithTextEncoder):
        text_encoder = tuned.text_encoder
        return lambda: embed_prompts(tokenizer, text_encoder, prompts, clip_skip, batch_size=1)
    embeds = embed_prompts(tokenizer, text_encoder, prompts, clip_skip, batch_size=1)
    return lambda: embeds
