"""Previews: images drawn while training."""

import numpy as np
import pytest
from PIL import Image

from tests.training.running import DREAMBOOTH, RESOLUTION, TEXT2IMG, digests, kill_at_a_checkpoint, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]


PREVIEWS = {"preview_prompts": ["a portrait", "asuka"], "preview_steps": 5}


DRAWN = {f"previews/p{index}-step{step:06d}.png" for index in range(2) for step in (5, 10, 12)}


def test_previews_change_nothing_and_survive_a_kill(encoded):
    """The weights learnt are the same without them; those drawn before a SIGKILL are there at the end."""
    write_params(encoded, train_text2img={"lora_dropout": 0.2, "max_train_steps": 12})
    run_stage("train_text2img", **TEXT2IMG, out="unseen")
    assert set(digests(encoded / "unseen")) == {"history.csv", "pytorch_lora_weights.safetensors"}
    write_params(encoded, train_text2img={"lora_dropout": 0.2, "max_train_steps": 12, "checkpointing_steps": 6} | PREVIEWS)
    run_stage("train_text2img", **TEXT2IMG, out="seen")
    seen = digests(encoded / "seen")
    assert {name: digest for name, digest in seen.items() if name not in DRAWN} == digests(encoded / "unseen")
    assert set(seen) - set(digests(encoded / "unseen")) == DRAWN
    assert len({seen[name] for name in DRAWN}) == len(DRAWN), "the weights change, and so do the images"
    kill_at_a_checkpoint(encoded, "train_text2img", **TEXT2IMG, out="cut")
    assert len(list((encoded / ".checkpoints/train_text2img/cut").rglob("*-step000005.png"))) == 2
    run_stage("train_text2img", **TEXT2IMG, out="cut")
    assert digests(encoded / "cut") == seen


def test_last_previews_are_what_the_file_draws(encoded):
    """With the text encoder trained, at the run's settings, from the written file."""
    import torch

    from stages.drawing.config import SamplingConfig
    from stages.drawing.image_files import read_image_recipe
    from stages.drawing.loaded_models import load_lora, load_models
    from stages.drawing.preview_images import INFERENCE_STEPS, NOISE_SCHEDULER, SEED
    from stages.drawing.sampling import draw

    write_params(
        encoded,
        class_images={"num_class_images": 0},
        train_dreambooth={"train_text_encoder": True, "preview_guidance_scale": 3.0} | PREVIEWS,
    )
    run_stage("class_images", model="model", out="class-no")
    options = DREAMBOOTH | {"class_images": "class-no"}
    run_stage("train_dreambooth", **options, out="drawn")
    models = load_models(encoded / "model", torch.device("cpu"))
    load_lora(models, encoded / "drawn")
    sampling = SamplingConfig("", NOISE_SCHEDULER, INFERENCE_STEPS, 3.0, RESOLUTION, 1, 0, "plain")
    for index, image in enumerate(draw(models, ["a portrait", "asuka"], [SEED], sampling)):
        path = encoded / f"drawn/previews/p{index}-step000012.png"
        difference = np.abs(np.asarray(image, dtype=int) - np.asarray(Image.open(path), dtype=int))
        assert difference.max() <= 1
        recipe = read_image_recipe(path)
        assert (recipe["prompt"], recipe["training_step"], recipe["seed"]) == (["a portrait", "asuka"][index], 12, SEED)
        assert (recipe["noise_scheduler"], recipe["guidance_scale"]) == (NOISE_SCHEDULER, 3.0)


def test_previews_in_half_precision(encoded):
    write_params(encoded, runtime={"dtype": "bfloat16"}, train_text2img=PREVIEWS | {"max_train_steps": 2})
    run_stage("train_text2img", **TEXT2IMG, out="half")
    assert len(list((encoded / "half/previews").iterdir())) == 2
