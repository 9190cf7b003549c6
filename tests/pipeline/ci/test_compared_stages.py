"""Which outputs CI pulls before it compares: those of the dataset and of the variants of the present sweep."""

from dataclasses import replace
from pathlib import Path

from stages.pipeline.ci.regenerate import compared_stages
from stages.pipeline.lockfile import LockedOut
from stages.report.sweep import Sweep

SWEEP = Sweep(
    alpha=(0.7,),
    rank=(4,),
    dreambooth_rank=(),
    vectors=(),
    seed=(0,),
    lora_scale=(1.0,),
    kept_steps={"text2img": (), "dreambooth": (), "textual_inversion": ()},
    bases=("theta0",),
)
DRAWN = ("theta0", "a0.7", "text2img-a0.7-r4-s0")


def pulled(sweep: Sweep, *paths: str) -> list[str]:
    """Those of the paths whose stages are pulled; each stage is called as what it writes."""
    return list(compared_stages([LockedOut(path, Path(path), "") for path in paths], sweep))


def test_images_embeddings_and_loras_of_each_variant_are_pulled_and_the_embeddings_of_the_dataset():
    paths = [
        *(f"data/images/{name}" for name in DRAWN),
        *(f"data/embeddings/{name}.safetensors" for name in ("dataset", *DRAWN)),
        "data/lora/text2img-a0.7-r4-s0",
    ]
    assert pulled(SWEEP, *paths) == paths


def test_what_left_the_sweep_and_what_the_comparison_does_not_read_stays_where_it_is():
    gone = (
        "theta1",
        "a0.3",
        "text2img-a0.3-r4-s0",
        "text2img-a0.7-r4-s1",
        "text2img-a0.7-r4-s0-step5",
        "dreambooth-a0.7-r4-s0",
    )
    paths = [path for name in gone for path in (f"data/images/{name}", f"data/embeddings/{name}.safetensors")]
    paths += [f"data/lora/{name}" for name in gone]
    paths += ["data/raw", "data/merged/a0.7", "data/base/theta0", "data/export/text2img-a0.7-r4-s0.safetensors", "data/report"]
    paths += ["data/encoded/captions-a0.7.safetensors", "data/class_images/a0.7", "data/code"]
    assert pulled(SWEEP, *paths) == []


def test_of_kept_steps_and_other_strengths_the_training_is_pulled_once_though_none_is_drawn_at_its_end_and_full_strength():
    sweep = replace(
        SWEEP, seed=(0, 2), lora_scale=(0.5,), kept_steps={"text2img": (5,), "dreambooth": (), "textual_inversion": ()}
    )
    names = [f"text2img-a0.7-r4-s{seed}{step}-x0.5" for seed in (0, 2) for step in ("-step5", "")]
    drawn = [path for name in names for path in (f"data/images/{name}", f"data/embeddings/{name}.safetensors")]
    trained = ["data/lora/text2img-a0.7-r4-s0", "data/lora/text2img-a0.7-r4-s2"]
    assert pulled(sweep, *drawn, *trained, "data/images/text2img-a0.7-r4-s0") == [*drawn, *trained]
