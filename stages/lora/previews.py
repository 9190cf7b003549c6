"""Previews: images of fixed prompts from fixed noise, drawn while training, so that over-fitting is seen.

The text encoder is in memory before training only (unless it is trained), the VAE only while images are drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from stages.checkpoints.file_names import PREVIEWS
from stages.drawing.image_files import write_image
from stages.encoding.prompts import embed_prompts, load_text_encoder
from stages.lora.run import Previews, Run
from stages.lora.text_encoder import UNetWithTextEncoder
from stages.pipeline.progress import say
from stages.pipeline.seals import sealed_file


@dataclass(frozen=True)
class Previewer:
    """Draws the prompts of a run with the weights as they are.

    Attributes:
        run: whose prompts are drawn.
        previews: how.
        tuned: what is trained: the UNet, or the UNet with its text encoder.
        embed: the embeddings (1 + N, L, D) of "" and of the N prompts.
        folder: for the images, p<prompt index>-step<step>.png.
    """

    run: Run
    previews: Previews
    tuned: nn.Module
    embed: Callable[[], Tensor]
    folder: Path

    def __call__(self, step: int) -> None:
        """Draw and write an image of each prompt; training goes on as if this had not been."""
        self.tuned.eval()
        try:
            images = self._draw()
        except torch.OutOfMemoryError:  # hours of training shall not end for a picture
            say(f"step {step}: there is no memory for previews beside the training; preview_prompts=[] leaves them out")
            return
        finally:
            self.tuned.train()
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, (prompt, image) in enumerate(zip(self.run.config.preview_prompts, images, strict=True)):
            with sealed_file(self.folder / f"p{index}-step{step:06d}.png") as part:
                write_image(image, part, {**self.previews.recipe, "prompt": prompt, "training_step": step})

    def _draw(self) -> list[Image.Image]:
        run = self.run
        with torch.compiler.set_stance("force_eager"):  # images have shapes of their own
            with run.autocast():
                embeds = self.embed().to(run.device, torch.float32)
            unet = self.tuned.unet if isinstance(self.tuned, UNetWithTextEncoder) else self.tuned
            return self.previews.draw(run.model, unet, embeds, run.dtype)


def make_previewer(run: Run, tuned: nn.Module) -> Previewer | None:
    """What draws the previews of a run; None where there are none."""
    if not run.config.preview_prompts or run.previews is None or run.folder is None:
        return None
    return Previewer(run, run.previews, tuned, prompt_embedder(run, tuned, run.previews.clip_skip), run.folder / PREVIEWS)


def prompt_embedder(run: Run, tuned: nn.Module, clip_skip: int) -> Callable[[], Tensor]:
    """How the prompts are embedded: now, once for all; or each time, by the text encoder that is trained.

    Raises:
        ValueError: as many layers would be left out as the text encoder has.
    """
    prompts = ["", *run.config.preview_prompts]
    if isinstance(tuned, UNetWithTextEncoder) and run.trained_prompts is not None:
        tokenizer, text_encoder = tuned.tokenizer, tuned.text_encoder
        prompts = [run.trained_prompts.read(prompt) for prompt in prompts]
        return lambda: embed_prompts(tokenizer, text_encoder, prompts, clip_skip, batch_size=1)
    tokenizer, text_encoder = load_text_encoder(run.model, torch.device("cpu"))
    embeds = embed_prompts(tokenizer, text_encoder, prompts, clip_skip, batch_size=1)
    return lambda: embeds
