"""Held-out images in the trainings: not learnt from, and measured alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from stages.checkpoints.file_names import LORA_FILE
from stages.drawing.loaded_models import load_lora, load_models
from stages.encoding.encoded_files import read_encoded_captions, read_encoded_images, write_encoded
from stages.encoding.prompts import embed_prompts, load_text_encoder
from stages.lora.batches import Draws, held_out_batches
from stages.lora.examples import Examples
from tests.lora.settings import noise_config
from tests.training.running import TRAININGS, held_out_losses, history_of, run_stage, write_params
from tests.training.world import HELD_OUT, NAMES

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]
CPU = torch.device("cpu")
IMAGES = {"images": "images-held-out.safetensors"}
PLACES = [NAMES.index(name) for name in HELD_OUT]


def train(root: Path, stage: str, out: str, **options: Any) -> Path:
    """Train on images of which some are held out; the folder of the result."""
    write_params(root, **{stage: {"max_train_steps": 6, "held_out_steps": 4, "learning_rate": 1e-2}})
    run_stage(stage, **TRAININGS[stage] | IMAGES | options, out=f"{stage}-{out}")
    return root / f"{stage}-{out}"


def write_changed(root: Path, places: list[int], name: str) -> dict[str, str]:
    """Encoded images of which some are others; the option that names them."""
    images = read_encoded_images(root / IMAGES["images"])
    mean = images.mean.clone()
    mean[places] += 1
    write_encoded(replace(images, mean=mean), root / name)
    return {"images": name}


@pytest.mark.parametrize("stage", TRAININGS)
def test_other_held_out_images_change_their_loss_and_nothing_else(held_out, stage):
    before = train(held_out, stage, "before")
    after = train(held_out, stage, "after", **write_changed(held_out, PLACES, "others-held-out.safetensors"))
    assert (before / LORA_FILE).read_bytes() == (after / LORA_FILE).read_bytes()
    for one, other in zip(history_of(before), history_of(after), strict=True):
        assert {**one, "held_out_loss": ""} == {**other, "held_out_loss": ""}
    losses, others = held_out_losses(before), held_out_losses(after)
    assert list(losses) == list(others) == [4, 6]
    assert all(losses[step] != others[step] for step in losses)
    learnt = train(held_out, stage, "learnt", **write_changed(held_out, [0], "others-learnt.safetensors"))
    assert (learnt / LORA_FILE).read_bytes() != (before / LORA_FILE).read_bytes()


def prompts_of(root: Path, stage: str) -> torch.Tensor:
    """The embeddings of the held-out images' prompts."""
    if stage == "train_text2img":
        return read_encoded_captions(root / "captions.safetensors").prompt_embeds[PLACES]
    tokenizer, text_encoder = load_text_encoder(root / "model", CPU)
    return embed_prompts(tokenizer, text_encoder, ["asuka"], 0, 1).expand(len(PLACES), -1, -1)


@pytest.mark.parametrize("stage", TRAININGS)
def test_their_loss_is_that_of_the_lora_on_them_alone(held_out, stage):
    """Computed once more from the written LoRA and the two images: the mean over both and over four timesteps."""
    out = train(held_out, stage, "measured")
    images = read_encoded_images(held_out / IMAGES["images"])
    embeds = prompts_of(held_out, stage)
    examples = Examples(images.mean[PLACES], images.std[PLACES], images.scaling_factor, embeds, embeds[0])
    models = load_models(held_out / "model", CPU)
    load_lora(models, out)
    noise_scheduler: Any = DDPMScheduler.from_pretrained(held_out / "model", subfolder="scheduler")
    squares = []
    for batch in held_out_batches(examples, Draws(0, 1000, False, noise_config()), 1):
        noisy_latents = noise_scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        with torch.no_grad():
            model_pred = models.unet(noisy_latents, batch.timesteps, batch.encoder_hidden_states, return_dict=False)[0]
        squares.append((model_pred - batch.noise).square().mean().item())
    assert len(squares) == 2 * 4
    assert held_out_losses(out)[6] == pytest.approx(sum(squares) / 8, rel=1e-4)


@pytest.mark.parametrize("stage", TRAININGS)
def test_it_is_said_how_many_are_held_out(held_out, capsys, stage):
    train(held_out, stage, "told")
    said = capsys.readouterr().out
    assert "4 images, 2 a step: 2 steps an epoch, 6 steps are 3 epochs" in said
    assert "about 3 times; 2 more images held out" in said
    train(held_out, stage, "of-none", images="images.safetensors")
    assert "held out" not in capsys.readouterr().out
    assert not held_out_losses(held_out / f"{stage}-of-none")
