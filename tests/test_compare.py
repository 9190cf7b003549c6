import json
from dataclasses import asdict, replace

import pytest

from stages.compare import CompareConfig, Names, stage
from stages.pipeline.config import ParamsError, SweepConfig, validate
from tests.comparison.small_comparison import NAMES, write_world

SWEEP = SweepConfig(alpha=(0.7,), rank=(4,), dreambooth_rank=(4,), bases=("theta0", "theta1"))
CONFIG = CompareConfig(
    title="Title",
    names=Names(**NAMES),
    subject_prompts=(1,),
    images_per_cell=2,
    image_size=16,
    resampling="nearest",
    training_images=2,
    font=None,
)


def compare(root, config=CONFIG, sweep=SWEEP):
    stage(config, sweep, root / "images", root / "scores", root / "lora", root / "dataset", root / "report")
    return root / "report"


def test_report_is_written_over_an_old_one(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "sweep-of-old.png").touch()
    report = compare(write_world(tmp_path))
    assert not (report / "sweep-of-old.png").exists()
    assert json.loads((report / "metrics.json").read_text())["text2img_reference_similarity_gain"] == pytest.approx(0.1)


def test_missing_variant_is_an_error_and_leaves_no_report(tmp_path):
    write_world(tmp_path)
    sweep = SweepConfig(alpha=(0.7, 0.5), rank=(4,), dreambooth_rank=(4,), bases=("theta0", "theta1"))
    with pytest.raises(FileNotFoundError, match=r"a0\.5.*stage generate"):
        compare(tmp_path, sweep=sweep)
    assert not (tmp_path / "report").exists()


def test_subject_prompt_that_was_not_drawn_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="subject_prompts: given 5: there are 2 prompts"):
        compare(write_world(tmp_path), replace(CONFIG, subject_prompts=(5,)))


@pytest.mark.parametrize(
    ("leaf", "value"),
    [
        ("title", ""),
        ("subject_prompts", []),
        ("subject_prompts", [-1]),
        ("images_per_cell", 0),
        ("image_size", 4),
        ("resampling", "bicubic"),
        ("training_images", -1),
        ("font", "no-such-font.ttf"),
    ],
)
def test_wrong_value_names_its_leaf(leaf, value):
    with pytest.raises(ParamsError, match=rf"compare\.{leaf}"):
        validate("compare", CompareConfig, asdict(CONFIG) | {leaf: value})
