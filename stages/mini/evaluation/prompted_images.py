"""Images that the small models draw for the evaluation, from prompts whose attributes are known."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from shutil import copytree
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from stages.checkpoints.merging.config import WEIGHTED_SUM
from stages.checkpoints.merging.models import merge_models
from stages.checkpoints.model import read_model, write_model
from stages.drawing.config import SamplingConfig
from stages.drawing.loaded_models import Models, load_models
from stages.drawing.sampling import encode_prompt, sample
from stages.mini.drawings.caption_attributes import words_of
from stages.mini.drawings.portraits import CHANCES, STYLES, caption
from stages.pipeline.progress import track

SAMPLING = SamplingConfig(
    negative_prompt="",
    noise_scheduler="ddim",
    num_inference_steps=25,
    guidance_scale=3.0,
    resolution=64,
    batch_size=16,
    clip_skip=0,
    prompt_syntax="plain",
)


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what an image of it should show."""

    text: str
    style: str
    attributes: Mapping[str, str]


def held_out_prompts(styles: Sequence[str], count: int, named: bool, shown_by: Sequence[str] | None = None) -> list[Prompt]:
    """Prompts with attributes drawn at random, the styles in turn.

    Args:
        styles: whose words the prompts use.
        count: of prompts.
        named: whether the prompt names its style.
        shown_by: styles that must all be able to show the attributes; None for the prompt's own.
    """
    prompts = []
    for index in range(count):
        style = styles[index % len(styles)]
        rng = Random(f"held-out prompt {index}")
        names = [
            name for name in STYLES[style].attributes if all(name in STYLES[one].attributes for one in shown_by or [style])
        ]
        attributes = {name: _word(style, name, rng) for name in names}
        prompts.append(Prompt(caption(STYLES[style].caption if named else None, attributes), style, attributes))
    return prompts


def _word(style: str, name: str, rng: Random) -> str:
    if name in CHANCES:
        return "yes" if rng.random() < CHANCES[name] else "no"
    return rng.choice(words_of(style, name))


def draw_prompts(models: Models, prompts: Sequence[Prompt], label: str) -> NDArray[np.uint8]:
    """One image for each prompt, (N, 64, 64, 3), its seed the prompt's number; a batch holds several prompts."""
    negative_embeds = encode_prompt(models, "")
    images = []
    for start in track(range(0, len(prompts), SAMPLING.batch_size), label):
        batch = prompts[start : start + SAMPLING.batch_size]
        prompt_embeds = torch.cat([encode_prompt(models, prompt.text) for prompt in batch])
        seeds = range(start, start + len(batch))
        images += [np.asarray(image) for image in sample(models, prompt_embeds, negative_embeds, seeds, SAMPLING)]
    return np.stack(images)


@contextmanager
def merged_models(theta0: Path, theta1: Path, alpha: float, base: Path, device: torch.device) -> Iterator[Models]:
    """The merge of two checkpoints with weight `alpha` of theta1, as the pipeline makes it; alpha 0 and 1 are the originals.

    Args:
        theta0: single file or diffusers directory.
        theta1: single file or diffusers directory.
        alpha: weight of theta1, in [0, 1].
        base: the ancestor, whose configs, tokenizer and VAE belong to both.
        device: where to draw.
    """
    originals = [read_model(path, None if path.is_dir() else base) for path in (theta0, theta1)]
    merged = merge_models(originals[0], originals[1], WEIGHTED_SUM, alpha)
    with TemporaryDirectory() as folder:
        write_model(Path(folder), merged, "float32")
        if not (Path(folder) / "vae" / "config.json").exists():
            copytree(base / "vae", Path(folder) / "vae", dirs_exist_ok=True)
        yield load_models(Path(folder), device)
