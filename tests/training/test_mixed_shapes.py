"""Images of several shapes, from encoding to LoRA files."""

import random
from typing import Any

import pytest

from tests.training.running import DREAMBOOTH, TEXT2IMG, digests, held_out_losses, kill_at_a_checkpoint, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]


BUCKETS = {"resolution": 64, "max_aspect_ratio": 3}


def test_images_of_mixed_shapes_train_both_kinds_and_resume(mixed, capsys):
    settings = {"max_train_steps": 40, "held_out_steps": 10, "train_batch_size": 3}
    write_params(mixed, encode_images=BUCKETS, train_text2img=settings, train_dreambooth={"max_train_steps": 5})
    run_stage("encode_images", images="mixed", vae="model/vae", out="mixed.safetensors")
    said = capsys.readouterr()
    assert "1 image at 32x96, 3 images at 64x64, 3 images at 96x32" in said.out
    assert "enlarged" not in said.err
    run_stage("encode_captions", dataset="mixed-dataset", model="model", out="mixed-captions.safetensors")
    options: dict[str, Any] = TEXT2IMG | {"images": "mixed.safetensors", "captions": "mixed-captions.safetensors"}
    run_stage("train_text2img", **options, out="mixed-whole")
    kill_at_a_checkpoint(mixed, "train_text2img", **options, out="mixed-cut")
    run_stage("train_text2img", **options, out="mixed-cut")
    assert digests(mixed / "mixed-cut") == digests(mixed / "mixed-whole")
    write_params(mixed, class_images={"num_class_images": 2, "resolution": 64}, train_dreambooth={"max_train_steps": 5})
    run_stage("class_images", model="model", out="class-square")
    options = DREAMBOOTH | {"images": "mixed.safetensors", "class_images": "class-square"}
    run_stage("train_dreambooth", **options, out="mixed-dreambooth")
    assert (mixed / "mixed-dreambooth/pytorch_lora_weights.safetensors").exists()
    for name in ("mixed-whole", "mixed-dreambooth"):
        assert held_out_losses(mixed / name)


def test_two_processes_killed_at_a_random_moment_end_with_the_same_bytes(mixed):
    """Images of several shapes, held-out images, previews and kept LoRAs included; the whole group is killed."""
    settings = {"num_processes": 2, "train_batch_size": 3, "max_train_steps": 40, "lora_dropout": 0.2, "checkpointing_steps": 1}
    settings |= {"held_out_steps": 10, "preview_prompts": ["a portrait"], "preview_steps": 15, "keep_every": 15}
    write_params(mixed, encode_images=BUCKETS, train_text2img=settings)
    run_stage("encode_images", images="mixed", vae="model/vae", out="mixed.safetensors")
    run_stage("encode_captions", dataset="mixed-dataset", model="model", out="mixed-captions.safetensors")
    options: dict[str, Any] = TEXT2IMG | {"images": "mixed.safetensors", "captions": "mixed-captions.safetensors"}
    run_stage("train_text2img", **options, out="two-whole")
    kill_at_a_checkpoint(mixed, "train_text2img", patience=random.Random(1).uniform(0, 0.4), **options, out="two-cut")
    assert not (mixed / "two-cut").exists()
    run_stage("train_text2img", **options, out="two-cut")
    assert digests(mixed / "two-cut") == digests(mixed / "two-whole")
    assert {path.name for path in (mixed / "two-cut").iterdir() if path.is_dir()} == {"previews", "step-15", "step-30"}
