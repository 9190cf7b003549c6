"""Images of the class that the subject belongs to, as a second stream: they keep the class from becoming the subject.

Ruiz et al. 2023 call it prior preservation (section 3.3, arXiv:2208.12242); kohya's trainers, with a caption for each image,
regularisation images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stages.drawing.image_files import read_image_recipe
from stages.encoding.latents import encode_images, load_vae
from stages.lora.batches import Stream
from stages.lora.examples import Examples
from stages.pipeline.progress import track

BATCH_SIZE = 8
INTERPOLATION = "lanczos"  # class images are drawn at the resolution, so nothing is resized as a rule


@dataclass(frozen=True)
class ClassImages:
    """Images of the class.

    Attributes:
        paths: none of them where prior preservation is off.
        prompt_of: the prompt that each of them is trained with.
    """

    paths: Sequence[Path]
    prompt_of: Sequence[str]

    @property
    def prompts(self) -> list[str]:
        """The prompts, each once, in the order in which they appear."""
        return list(dict.fromkeys(self.prompt_of))


def read_class_images(folder: Path, prompt: str | None = None) -> ClassImages:
    """The class images of a folder, none of them if it is empty.

    Args:
        folder: that the stage class_images wrote.
        prompt: of all of them; None for each the prompt that it says it was made with.

    Raises:
        ValueError: one of them says no prompt.
    """
    paths = sorted(folder.glob("*.png"))
    prompt_of = [prompt or read_image_recipe(path).get("prompt", "") for path in paths]
    if "" in prompt_of:
        raise ValueError(f"{paths[prompt_of.index('')]}: does not say with which prompt it was made: run class_images again")
    return ClassImages(paths, prompt_of)


@dataclass(frozen=True)
class ClassPrompts:
    """How the prompts of class images are given to the UNet.

    Attributes:
        embeds: (N, L, D), of `ClassImages.prompts`; or (N,), their numbers, where the text encoder is trained.
        empty_embeds: (L, D), of the prompt ""; or a number.
        dropout: share of the images that are trained with the empty prompt.
    """

    embeds: Tensor
    empty_embeds: Tensor
    dropout: float = 0.0


def class_streams(
    class_images: ClassImages, prompts: ClassPrompts, model: Path, resolution: int, weight: float, device: torch.device
) -> list[Stream]:
    """The stream of class images, encoded by the model's VAE, which is let go of afterwards.

    There is none where there are no images, or where they weigh nothing.

    Args:
        class_images: of the class.
        prompts: of `class_images.prompts`.
        model: in diffusers layout.
        resolution: pixels of one side.
        weight: of the stream in the loss.
        device: to encode on.
    """
    if not class_images.paths or not weight:
        return []
    vae = load_vae(model / "vae", device)
    paths = track(class_images.paths, "class images encoded")
    mean, std = encode_images(vae, paths, (resolution, resolution), INTERPOLATION, BATCH_SIZE)
    order = {prompt: number for number, prompt in enumerate(class_images.prompts)}
    prompt_embeds = prompts.embeds[[order[prompt] for prompt in class_images.prompt_of]]
    names = tuple(path.name for path in class_images.paths)
    examples = Examples(mean, std, vae.config["scaling_factor"], prompt_embeds, prompts.empty_embeds, names)
    return [Stream("class", examples, weight, prompts.dropout)]
