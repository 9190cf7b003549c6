import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from stages.checkpoints.merging.config import MergeConfig
from stages.compare import stage
from stages.lora.config import DreamboothConfig, Text2imgConfig, TextualInversionConfig
from stages.pipeline.config import ParamsError, validate
from stages.report.config import ReportConfig
from tests.report.small_comparison import CONFIG, PARAMS, SWEEP, TEXT2IMG, write_world

ROOT = Path(__file__).parents[1]
MERGE = validate("merge", MergeConfig, PARAMS["merge"])
TEXT2IMG_CONFIG = validate("train_text2img", Text2imgConfig, PARAMS["train_text2img"])
DREAMBOOTH_CONFIG = validate("train_dreambooth", DreamboothConfig, PARAMS["train_dreambooth"])
WORD_CONFIG = validate("train_textual_inversion", TextualInversionConfig, PARAMS["train_textual_inversion"])


def compare(root, config=CONFIG, sweep=SWEEP):
    sections = (MERGE, TEXT2IMG_CONFIG, DREAMBOOTH_CONFIG, WORD_CONFIG)
    folders = (root / name for name in ("images", "embeddings", "lora", "raw", "dataset", "report"))
    stage(config, sweep, *sections, *folders)
    return root / "report"


def test_report_is_written_over_an_old_one(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "sweep-of-old.png").touch()
    report = compare(write_world(tmp_path))
    assert not (report / "sweep-of-old.png").exists()
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics[TEXT2IMG.key]["subject_fidelity_gain"] == pytest.approx(0.1)


def test_missing_variant_is_an_error_and_leaves_no_report(tmp_path):
    write_world(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"a0\.5.*stage generate"):
        compare(tmp_path, sweep=replace(SWEEP, alpha=(0.7, 0.5)))
    assert not (tmp_path / "report").exists()


def test_every_template_is_a_dependency_of_the_stage():
    """A fingerprint covers Python alone."""
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["compare"]["deps"]
    others = [path for path in (ROOT / "stages" / "report").rglob("*.*") if path.suffix in (".jinja", ".css", ".js", ".html")]
    assert {path.parent.relative_to(ROOT).as_posix() for path in others} == {"stages/report/templates"}
    assert [dep for dep in deps if dep.startswith("stages/")] == ["stages/report/templates"]


@pytest.mark.parametrize(
    "spoil",
    ["embeddings/theta1.safetensors", "lora/text2img-a0.7-r4-s0/history.csv", "images/a0.7/p0-s3.png", "raw/manifest.csv"],
)
def test_broken_input_leaves_the_old_report_as_it_was(tmp_path, spoil):
    report = compare(write_world(tmp_path))
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    (tmp_path / spoil).write_bytes(b"spoilt")
    with pytest.raises((ValueError, OSError), match=Path(spoil).name):
        compare(tmp_path)
    assert {path: path.read_bytes() for path in report.rglob("*") if path.is_file()} == before


def test_characters_that_no_font_has_are_named_with_the_setting_to_change(tmp_path, capsys):
    compare(write_world(tmp_path), replace(CONFIG, title="été 猫"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: compare.font: it has no 猫 (U+732B)")
    assert "the PNG grids show a box" in line
    compare(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_file_that_is_no_font_is_refused(tmp_path):
    (tmp_path / "my.ttf").write_bytes(b"no font")
    with pytest.raises(OSError, match=r"my\.ttf: is not a font"):
        compare(write_world(tmp_path), replace(CONFIG, font=tmp_path / "my.ttf"))
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("title", ""),
        ("primary", "beauty"),
        ("contrasts", []),
        ("contrasts", [["text2img", "text2img"]]),
        ("contrasts", [["text2img", "merge"], ["merge", "text2img"]]),
        ("contrasts", [["text2img", "lora"]]),
        ("grid_prompts", 0),
        ("images_per_cell", 0),
        ("image_size", 4),
        ("resampling", "bicubic"),
        ("training_images", -1),
        ("font", "no-such-font.ttf"),
    ],
)
def test_wrong_value_names_its_setting(setting, value):
    with pytest.raises(ParamsError, match=rf"compare\.{setting}"):
        validate("compare", ReportConfig, asdict(CONFIG) | {setting: value})
