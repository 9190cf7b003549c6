"""The stage train_textual_inversion on tiny random models."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages.checkpoints.file_names import EMBEDDING_FILE, LORA_FILE
from stages.encoding.words import read_learned
from tests.lora.tiny_adapters import pipeline_of
from tests.training.running import TEXTUAL_INVERSION, digests, kill_at_a_checkpoint, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]
WORD = TEXTUAL_INVERSION


@pytest.mark.parametrize("tuned", ["embedding", "lora"])
def test_a_training_that_was_killed_ends_with_the_same_bytes(encoded, tuned):
    write_params(encoded, train_textual_inversion={"tuned": tuned, "max_train_steps": 40, "keep_every": 20})
    one, two = f"word-{tuned}-one", f"word-{tuned}-two"
    run_stage("train_textual_inversion", **WORD, out=one)
    kill_at_a_checkpoint(encoded, "train_textual_inversion", **WORD, out=two)
    run_stage("train_textual_inversion", **WORD, out=two)
    assert digests(encoded / one) == digests(encoded / two)
    files = [EMBEDDING_FILE] if tuned == "embedding" else [EMBEDDING_FILE, LORA_FILE]
    assert sorted(path.name for path in (encoded / one / "step-20").iterdir()) == files
    learned, then = (read_learned(encoded / one / place) for place in (EMBEDDING_FILE, f"step-20/{EMBEDDING_FILE}"))
    assert learned.vectors.shape == then.vectors.shape == (2, learned.vectors.shape[1])
    assert not torch.equal(learned.vectors, then.vectors)
    assert learned.replaces == "asuka" and learned.settings["training"]["vectors"] == 2


def test_diffusers_draws_the_same_image_with_the_file(encoded):
    import numpy as np
    from diffusers import DDIMScheduler

    from stages.drawing import loaded_models, sampling
    from stages.drawing.config import SamplingConfig

    write_params(encoded, train_textual_inversion={"learning_rate": 0.5})
    run_stage("train_textual_inversion", **WORD, out="word")
    config = SamplingConfig("", "ddim", 3, 4.0, 32, 1, 0, "plain")
    cpu = torch.device("cpu")
    models = loaded_models.load_word(loaded_models.load_models(encoded / "model", cpu), encoded / "word")
    (ours,) = sampling.draw(models, ["asuka, a portrait"], [7], config)
    (without,) = sampling.draw(loaded_models.load_models(encoded / "model", cpu), ["asuka, a portrait"], [7], config)
    plain = loaded_models.load_models(encoded / "model", cpu)
    parts: dict[str, Any] = {part: getattr(plain, part) for part in ("unet", "vae", "text_encoder", "tokenizer")}
    scheduler = DDIMScheduler.from_config(sampling.make_noise_scheduler(encoded / "model", "ddim").config)
    loaded = pipeline_of(**parts, scheduler=scheduler)
    loaded.load_textual_inversion(str(encoded / "word"), weight_name=EMBEDDING_FILE)
    theirs = loaded(
        "<asuka>, a portrait",
        negative_prompt="",
        num_inference_steps=3,
        guidance_scale=4.0,
        height=32,
        width=32,
        latents=sampling.initial_latents(models, sampling.generators([7]), 32),
    ).images[0]
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert not np.array_equal(np.asarray(ours), np.asarray(without))


def test_a_lora_that_was_trained_with_the_word_is_drawn_with_it(encoded):
    settings = {"tuned": "lora", "embedding_learning_rate": 0.05, "learning_rate": 0.01}
    write_params(encoded, train_textual_inversion=settings)
    run_stage("train_textual_inversion", **WORD, out="pivotal")
    assert {path.name for path in (encoded / "pivotal").iterdir()} >= {EMBEDDING_FILE, LORA_FILE}
    before = load_file(encoded / "pivotal" / EMBEDDING_FILE)["<asuka>"]
    write_params(encoded, train_textual_inversion=settings | {"embedding_learning_rate": 0.01})
    run_stage("train_textual_inversion", **WORD, out="slower")
    assert not torch.equal(before, load_file(encoded / "slower" / EMBEDDING_FILE)["<asuka>"])


def test_the_captions_of_a_dataset_may_describe_the_images(encoded, capsys):
    write_params(encoded, train_textual_inversion={"templates": "captions"})
    with pytest.raises(SystemExit):
        run_stage("train_textual_inversion", **WORD, out="without")
    assert "--dataset: is needed with templates=captions" in capsys.readouterr().err
    run_stage("train_textual_inversion", **WORD, dataset="dataset", out="captioned")
    assert (encoded / "captioned" / EMBEDDING_FILE).is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": 0}, "train_textual_inversion: error: --vectors: given 0"),
        ({"seed": -1}, "train_textual_inversion: error: --seed: given -1"),
        ({"images": "captions.safetensors"}, "train_textual_inversion: error: captions.safetensors: not a file of encoded"),
    ],
)
def test_wrong_inputs_are_one_line(encoded, capsys, options, message):
    with pytest.raises(SystemExit) as exit:
        run_stage("train_textual_inversion", **WORD | options, out="wrong")
    assert exit.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (encoded / "wrong").exists()
