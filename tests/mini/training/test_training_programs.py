"""VAE, ancestor and fine-tunes, made at a very small size."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.checkpoints.files.pickles import open_ckpt
from stages.checkpoints.files.tensors import open_safetensors
from stages.mini.training import train_ancestor, train_finetune, train_vae

TINY = ["--tiny", "--steps", "2", "--threads", "1", "--dtype", "float32"]


@pytest.mark.stage
def test_they_make_a_pipeline_and_both_single_files(work: Path) -> None:
    options = ["--work", str(work), *TINY]
    train_vae.main(options)
    train_ancestor.main([*options, "--batch-size", "4"])
    for style in ("anime", "toon"):
        train_finetune.main([*options, "--batch-size", "4", "--style", style])

    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(work / "base", torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    prompt = "asuka, red hair"
    image = pipeline(prompt, num_inference_steps=2, output_type="np", height=64, width=64).images[0]
    assert image.shape == (64, 64, 3)
    assert pipeline.tokenizer.decode(pipeline.tokenizer(prompt).input_ids, skip_special_tokens=True) == "asuka , red hair"

    anime = open_safetensors(work / "anime.safetensors")
    toon = open_ckpt(work / "toon.ckpt")
    assert {key.replace("transformer.text_model.", "transformer.") for key in anime} == set(toon)
    assert toon["cond_stage_model.transformer.embeddings.position_ids"].shape == (1, 77)
    key = "first_stage_model.decoder.conv_in.weight"
    assert np.array_equal(anime[key].load(), toon[key].load())


@pytest.mark.stage
def test_a_resumed_training_ends_as_an_uninterrupted_one(work: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        shutil.copytree(work / "drawings", folder / "drawings")
    common = ["--steps", "4", "--tiny", "--threads", "1", "--dtype", "float32"]
    train_vae.main(["--work", str(whole), *common])
    interrupted = parts / "vae.pt"

    def stop(step: int) -> float:
        if step == 2:
            raise KeyboardInterrupt
        return 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.mini.training.fitting.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
        original = train_vae.reconstruction_loss
        calls = iter(range(4))

        def loss(*arguments: object) -> torch.Tensor:
            return original(*arguments) * stop(next(calls))  # pyright: ignore[reportArgumentType]

        patch.setattr(train_vae, "reconstruction_loss", loss)
        with pytest.raises(KeyboardInterrupt):
            train_vae.main(["--work", str(parts), *common])
    assert torch.load(interrupted, weights_only=True)["step"] == 2
    train_vae.main(["--work", str(parts), *common])
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()


@pytest.mark.stage
def test_a_finished_training_is_not_gone_on_with(work: Path, tmp_path: Path) -> None:
    """Its code or its drawings have changed where the pipeline runs it again."""
    shutil.copytree(work / "drawings", tmp_path / "drawings")
    options = ["--work", str(tmp_path), *TINY]
    train_vae.main(options)
    assert not list(tmp_path.glob("*.pt"))
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_vae, "LEARNING_RATE", 1e-2)
        train_vae.main(options)
    assert weights.read_bytes() != before
