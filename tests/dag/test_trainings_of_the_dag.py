"""The real DAG at its smallest size: what trains and draws again where a setting is another."""

import pytest

from tests.dag.repository import LORAS, ONE_CELL, TEXT2IMG, drawn

pytestmark = pytest.mark.stage


def test_another_strength_of_the_loras_is_drawn_and_nothing_else(baseline):
    baseline.compose("sweep.lora_scale=[1.0,0.5]")
    assert baseline.repro() == drawn(*(f"{lora}-x0.5" for lora in LORAS)) | {"compare"}


def test_another_training_seed_trains_and_draws_its_loras_and_nothing_else(baseline):
    baseline.compose("sweep.seed=[0,1]")
    loras = [lora.replace("-s0", "-s1") for lora in LORAS]
    trainings = {"train_text2img@0.7-8-1", "train_dreambooth@0.7-8-1"}
    assert baseline.repro() == trainings | drawn(*loras) | {f"export@{lora}" for lora in loras} | {"compare"}


def test_a_lora_that_is_kept_on_the_way_is_drawn_and_the_end_of_its_training_stays_what_it_was(baseline):
    """Its pictures come out as they were, so that nothing that reads them runs."""
    baseline.compose("train_text2img.keep_every=1")
    new = drawn(f"{TEXT2IMG}-step1")
    assert baseline.repro() == {"train_text2img@0.7-8-0", f"generate@{TEXT2IMG}", *new, f"export@{TEXT2IMG}", "compare"}


def test_another_image_held_out_is_held_out_of_both_trainings(baseline):
    baseline.compose("download.held_out_images=2")
    data = {"download", "caption", "encode_images", "encode_captions@0.7", "embed@dataset"}
    trainings = {"train_text2img@0.7-8-0", "train_dreambooth@0.7-8-0", *(f"export@{lora}" for lora in LORAS)}
    assert baseline.repro() == data | trainings | drawn(*LORAS) | {"compare"}
    assert {len(list((baseline.root / "data/dataset" / split).glob("*.png"))) for split in ("train", "test")} == {2}


def test_text2img_learning_rate(baseline):
    baseline.compose("train_text2img.learning_rate=5e-4")
    assert baseline.repro() == {"train_text2img@0.7-8-0", *ONE_CELL, "compare"}


def test_one_alpha_more_and_one_less(baseline):
    baseline.compose("sweep.alpha=[0.7,0.3]")
    new = {"merge@0.3", "encode_captions@0.3", "class_images@0.3", "export@model-a0.3", "generate@a0.3", "embed@a0.3"}
    for kind in ("text2img", "dreambooth"):
        new |= {f"train_{kind}@0.3-8-0", *(f"{verb}@{kind}-a0.3-r8-s0" for verb in ("generate", "embed", "export"))}
    assert baseline.repro() == {*new, "compare"}
    baseline.compose("sweep.alpha=[0.3]")
    assert baseline.repro() == {"compare"}
    for gone in ("images/a0.7", "embeddings/a0.7.safetensors", f"lora/{TEXT2IMG}"):
        assert not (baseline.root / "data" / gone).exists()
    assert (baseline.root / "data/embeddings/dataset.safetensors").exists()


def test_caption_editing_leaves_dreambooth_alone(baseline):
    baseline.compose("caption.prefix=someone")
    assert baseline.repro() == {"caption", "encode_captions@0.7", "train_text2img@0.7-8-0", *ONE_CELL, "compare"}


def test_other_class_images_train_both_loras_again_and_leave_the_models_alone(baseline):
    baseline.compose("class_images.class_prompts=[something else]")
    trainings = {"train_text2img@0.7-8-0", "train_dreambooth@0.7-8-0", *(f"export@{lora}" for lora in LORAS)}
    assert baseline.repro() == {"class_images@0.7", "compare"} | trainings | drawn(*LORAS)
