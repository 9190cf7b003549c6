from pathlib import Path

import matplotlib
import pytest
from PIL import ImageFont

from stages.report.lettering import composed, font_for, missing_characters, undrawable, wrap

SANS = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
SYMBOLS = SANS.with_name("STIXSizOneSymReg.ttf")


def name_of(font):
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.getname()


def test_ascii_keeps_pillows_own_font_and_other_letters_get_dejavu():
    assert name_of(font_for("a portrait", 20, None)) == ("Aileron", "Regular")
    assert name_of(font_for("portrait d'une étudiante", 20, None)) == ("DejaVu Sans", "Book")


def test_the_font_that_is_given_draws_all():
    assert name_of(font_for("a portrait", 20, SYMBOLS)) == ImageFont.truetype(SYMBOLS, 20).getname()


def test_characters_without_a_glyph_are_named_once():
    assert undrawable(["été, größe, Ωμέγα, Жук", "a 猫 b 猫", "猫耳 🚀"], None) == ["猫", "耳", "🚀"]
    assert undrawable(["plain"], None) == []
    assert undrawable(["αβ a"], SYMBOLS) == ["α", "β", "a"]


def test_pillows_own_font_has_no_letters_beyond_ascii():
    assert missing_characters(["aé\u00a0Ж\n"], None) == ["é", "Ж"]


def test_decomposed_accents_are_drawn_as_one_letter():
    assert composed("e\u0301") == "é"
    assert undrawable(["e\u0301"], None) == []


def test_a_file_that_is_no_font_is_refused(tmp_path):
    (tmp_path / "font.ttf").write_text("no font")
    with pytest.raises(OSError, match=r"font\.ttf: is not a font"):
        font_for("a", 20, tmp_path / "font.ttf")


def test_wrap_keeps_every_word():
    font = font_for("a", 16, None)
    text = "a rather long prompt, with several phrases, green background"
    lines = wrap(text, font, 120)
    assert " ".join(lines) == text
    assert len(lines) > 2
    assert all(font.getlength(line) <= 120 for line in lines)


def test_a_word_wider_than_a_line_is_cut_and_nothing_is_lost():
    font = font_for("a", 16, None)
    lines = wrap("see very_incomprehensibilities_of_all_kinds", font, 90)
    assert lines[0] == "see"
    assert "".join(lines[1:]) == "very_incomprehensibilities_of_all_kinds"
    assert all(font.getlength(line) <= 90 for line in lines)
    assert lines[1].endswith("_"), "a name is best cut at its own marks"
    assert wrap("wide", font, 1) == list("wide")


def test_scripts_without_spaces_are_broken_anywhere_but_before_closing_marks():
    font = font_for("é", 16, None)
    text = "赤い髪の少女、緑の背景。" * 3
    lines = wrap(text, font, 80)
    assert "".join(lines) == text
    assert all(font.getlength(line) <= 80 for line in lines)
    assert not any(line.startswith(("、", "。")) for line in lines)


def test_accents_and_joined_emoji_stay_with_what_they_belong_to():
    font = font_for("é", 16, None)
    lines = wrap("x\u0323\u0301" * 40 + " 👩\u200d🚀👩\u200d🚀", font, 60)
    assert not any(line.startswith(("\u0323", "\u0301", "\u200d", "🚀")) for line in lines)


def test_empty_text_is_one_empty_line():
    assert wrap("", font_for("a", 16, None), 10) == [""]
