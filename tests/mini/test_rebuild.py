"""The whole making of the small world, at a very small size."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.checkpoints.files.pickles import open_ckpt
from stages.checkpoints.files.tensors import open_safetensors
from stages.mini import draw_sets, train_ancestor, train_finetune, train_vae
from stages.mini.drawings import STYLES

TINY = ["--tiny", "--steps", "2", "--threads", "1", "--dtype", "float32"]


def work_with_drawings(work: Path) -> Path:
    (work / "drawings").mkdir(parents=True)
    for style in STYLES:
        draw_sets.draw_array(style, range(8), work / "drawings" / f"train-{style}.npy", processes=1)
        draw_sets.draw_array(style, range(8, 10), work / "drawings" / f"held-out-{style}.npy", processes=1)
    return work


@pytest.mark.stage
def test_rebuild_makes_a_pipeline_and_both_single_files(tmp_path: Path) -> None:
    work = work_with_drawings(tmp_path / "work")
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
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    work = work_with_drawings(tmp_path / "work")
    common = ["--work", str(work), "--tiny", "--threads", "1", "--dtype", "float32"]
    train_vae.main([*common, "--steps", "4", "--name", "whole"])
    interrupted = work / "parts.pt"

    def stop(step: int) -> float:
        if step == 2:
            raise KeyboardInterrupt
        return 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.mini.fitting.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
        original = train_vae.reconstruction_loss
        calls = iter(range(4))

        def loss(*arguments: object) -> torch.Tensor:
            return original(*arguments) * stop(next(calls))  # pyright: ignore[reportArgumentType]

        patch.setattr(train_vae, "reconstruction_loss", loss)
        with pytest.raises(KeyboardInterrupt):
            train_vae.main([*common, "--steps", "4", "--name", "parts"])
    assert torch.load(interrupted, weights_only=True)["step"] == 2
    train_vae.main([*common, "--steps", "4", "--name", "parts"])
    whole, parts = (work / name / "diffusion_pytorch_model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_image_sets_name_their_source_and_show_the_subject(tmp_path: Path) -> None:
    draw_sets.main(["--work", str(tmp_path), "--image-sets", str(tmp_path), "--tiny"])
    for name, creator in (("asuka", "Lisa Wischofsky"), ("eight_bit", "DiceBear")):
        with (tmp_path / name / "manifest.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows and all(creator in row["source"] and row["licence"] for row in rows)
    with (tmp_path / "asuka" / "truth.csv").open(encoding="utf-8", newline="") as file:
        assert {(row["hair"], row["hair_color"], row["skin"]) for row in csv.DictReader(file)} == {
            ("twin tails", "red", "light")
        }
