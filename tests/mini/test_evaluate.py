import argparse
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stages.mini.evaluate import PIXEL_ART_TARGETS, SECTIONS, TARGETS, Target, _sections
from stages.mini.generated import held_out_prompts
from stages.mini.sheets import write_sheet


def test_the_figures_of_an_image_set_decide_a_target():
    target = Target("loras", "features", lambda figures: figures.get("x"), least=0.8)
    assert target.line({"x": 0.8}).endswith("reached")
    assert target.line({"x": 0.79}).endswith("MISSED")
    assert target.line({}).endswith("not measured")
    most = replace(target, least=None, most=0.2)
    assert most.line({"x": 0.2}).endswith("reached")
    assert most.line({"x": 0.3}).endswith("MISSED")


def test_the_worst_variant_counts():
    loras = {target.words: target for target in TARGETS + PIXEL_ART_TARGETS if target.section == "loras"}
    figures = {
        "text2img-a0.7-r4": {"subject": 0.9, "pixel_art": 0.7},
        "dreambooth-a0.7-r4": {"subject": 0.85, "pixel_art": 1.0},
        "a0.7": {"subject": 0.1, "pixel_art": 0.0},
        "theta0": {"subject": 0.3, "pixel_art": 0.05},
    }
    found = {words: target.figure(figures) for words, target in loras.items()}
    assert sorted(value or 0.0 for value in found.values()) == [0.05, 0.3, 0.7, 0.85]


def test_every_target_belongs_to_a_section():
    assert {target.section for target in TARGETS + PIXEL_ART_TARGETS} <= set(SECTIONS)
    assert _sections("vae,loras") == ["vae", "loras"]
    with pytest.raises(argparse.ArgumentTypeError, match="known are"):
        _sections("vae,sound")


def test_prompts_name_the_style_only_where_asked_and_ask_for_what_it_shows():
    named = held_out_prompts(("micah", "adventurer"), 8, named=True)
    assert [prompt.style for prompt in named[:2]] == ["micah", "adventurer"]
    assert named[0].text.startswith("toon portrait, ")
    assert "clothes" in named[0].attributes
    assert "clothes" not in named[1].attributes
    unnamed = held_out_prompts(("micah",), 8, named=False, shown_by=("micah", "adventurer"))
    assert all(prompt.text.startswith("a portrait, ") and "clothes" not in prompt.attributes for prompt in unnamed)
    assert unnamed == held_out_prompts(("micah",), 8, named=False, shown_by=("micah", "adventurer"))


def test_a_sheet_frames_what_is_wrong(tmp_path):
    images = np.zeros((3, 64, 64, 3), np.uint8)
    write_sheet(images, tmp_path / "sheets" / "a.png", columns=2, right=[True, False, True])
    sheet = Image.open(tmp_path / "sheets" / "a.png")
    assert sheet.size == (2 * 134, 2 * 134)
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    assert sheet.getpixel((134, 0)) == (220, 30, 30)
