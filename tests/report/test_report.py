import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from PIL import Image

from stages.checkpoints.file_names import PREVIEWS
from stages.measures.statistics import Interval
from stages.pipeline.variants import Variant
from stages.report.cards import render_card
from stages.report.citing import methods
from stages.report.figures import CHART_FILES
from stages.report.grids import draw_grid
from stages.report.page import WORST, page_files, reached, render_page
from stages.report.plots import trends
from stages.report.rendering import TEMPLATES, bounds, number, signed
from stages.report.report import grids, main_grid, write_report
from stages.report.results import read_results
from tests.report.small_comparison import (
    COLOURS,
    CONFIG,
    LIKENESS,
    NAMES,
    NARROW,
    OTHER_PROMPTS,
    SEEDS,
    SUBJECT_PROMPTS,
    SWEEP,
    TEXT2IMG,
    WIDE,
    cells,
    leak,
    read_world,
    rewrite,
    write_previews,
    write_variant,
    write_world,
)

VOID = {"meta", "img", "input", "br", "line", "circle"}


class Page(HTMLParser):
    """Collects a page's words, its addresses and its unclosed elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.addresses, self.open = "", [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.words += " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def wide_world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("wide"), WIDE)


@pytest.fixture(scope="module")
def page(world) -> Page:
    return Page(page_html(read_world(world)))


def page_html(comparison) -> str:
    return render_page(comparison, page_files(comparison))


def words(page: Page) -> str:
    return re.sub(r"\s+", " ", page.words)


def test_a_single_file_needs_no_other(world):
    config = replace(CONFIG, single_file=True)
    page = Page(page_html(read_world(world, config=config)))
    assert page.addresses
    assert {address for address in page.addresses if not address.startswith(("data:image/", "#"))} == {"lineage.html"}
    assert page.open == []
    images = [address for address in page.addresses if address.startswith("data:")]
    drawn = 5 * len(SUBJECT_PROMPTS + OTHER_PROMPTS) * len(SEEDS)
    assert len(images) == drawn + 3 + 2 * WORST + 8
    assert len(set(images)) < len(images)


def test_what_the_page_shows_lies_beside_it(world, page, tmp_path):
    (tmp_path / "report").mkdir()
    write_report(read_world(world), tmp_path / "report")
    files = {address for address in page.addresses if not address.startswith("#")} - {"lineage.html"}
    assert files
    for address in files:
        assert (tmp_path / "report" / unquote(address)).is_file(), address
    drawn = {f"images/{variant.name}/{cell.file_name}" for variant in SWEEP.variants for cell in cells()}
    assert drawn <= files
    for name in drawn:
        assert (tmp_path / "report" / name).read_bytes() == (world / name).read_bytes()


def test_page_says_what_was_gained_where_it_was_asked_for(page):
    said = words(page)
    compared = "text2img LoRA rank 4, compared with the same model without it Likeness gained by naming the subject"
    assert f"{compared} +0.100 0.270 → 0.370, good" in said
    assert re.search(r"DreamBooth LoRA rank 4, compared.* \(DINO\) \+0\.300 0\.415 → 0\.715, good", said)
    leaked = r"Likeness to the subject where it is not asked for \(DINO\) 0\.000 0\.145 → 0\.145, not told apart from no change"
    assert re.search(leaked, said)


def test_page_calls_harm_harm_in_words_and_in_colour(tmp_path):
    leak(write_world(tmp_path), TEXT2IMG)
    html = page_html(read_world(tmp_path))
    said = words(Page(html))
    assert re.search(r"where it is not asked for \(DINO\) \+0\.400 0\.145 → 0\.545, harm", said)
    assert re.search(r"Likeness to the prompt where it is not asked for −0\.200 .*?, harm", said)
    assert '<strong class="harm">+0.400</strong>' in html
    assert '<strong class="good">+0.100</strong>' in html
    assert said.count("○ +0.400 harm") == 1, "the forest names it beside its row"
    assert re.search(r"higher is harm, it leaks .* lower than without a LoRA is harm", said)


def test_page_puts_the_declared_question_first(page, world):
    first, *_ = read_world(world).findings.sentences
    assert first.startswith("The question declared beforehand: text2img LoRA, rank 4 against DreamBooth LoRA, rank 4: worse by")
    assert first in words(page)


def test_one_prompt_of_each_kind_gives_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.report.small_comparison.SUBJECT_PROMPTS", SUBJECT_PROMPTS[:1])
    monkeypatch.setattr("tests.report.small_comparison.OTHER_PROMPTS", OTHER_PROMPTS[:1])
    comparison = read_world(write_world(tmp_path))
    assert {contrast.verdict for contrast in comparison.findings.contrasts} == {"not told apart"}
    said = words(Page(page_html(comparison)))
    assert "1 prompt that asks for the subject and 1 prompt that does not" in said
    assert not re.search(r"(better|worse) by|, (good|harm)\b", said)


def test_page_says_where_no_image_was_held_out(tmp_path):
    comparison = read_world(write_world(tmp_path, held_out=0))
    assert "No image was held out" in words(Page(page_html(comparison)))
    assert comparison.results.dataset.references["dino"].shape == comparison.results.dataset.training["dino"].shape


def test_page_is_grammatical_for_one_of_each(tmp_path):
    comparison = read_world(write_world(tmp_path, NARROW), NARROW)
    one = comparison.training.trained_on[0]
    said = words(Page(page_html(replace(comparison, training=replace(comparison.training, images=[one])))))
    assert "The LoRAs learnt from 1 image, this one" in said
    assert "of the two kinds" not in said


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_of_words_can_be_read():
    """Contrast of at least 4.5 (WCAG AA), in the light and in the dark scheme."""
    css = (TEMPLATES / "report.css").read_text()
    schemes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", css.partition("@media print")[0], re.DOTALL)
    ]
    assert len(schemes) == 2
    for scheme in schemes:
        for ground in ("paper", "ground"):
            for ink in ("ink", "muted", "good", "harm", "link"):
                dark, light = sorted((luminance(scheme[ink]), luminance(scheme[ground])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_charts_are_svg_files_that_need_nothing_else(tmp_path):
    leak(write_world(tmp_path), TEXT2IMG)
    comparison = read_world(tmp_path)
    named = replace(CONFIG, names=replace(NAMES, text2img="<b>LoRA</b> & " + "x" * 60))
    (tmp_path / "report").mkdir()
    write_report(replace(comparison, config=named), tmp_path / "report")
    charts = sorted((tmp_path / "report" / "charts").glob("*.svg"))
    assert len(charts) == 3 + 1 + 2 * 3
    for chart in charts:
        text = chart.read_text()
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert set(re.findall(r"https?://[^\"<]*", text)) == {"http://www.w3.org/2000/svg"}
        assert not re.search(r"href|url\(|@import|src=", text)
    likeness = (tmp_path / "report" / "charts" / "scores-dino_similarity.svg").read_text()
    assert "○ +0.400 harm" in likeness
    assert "higher is harm, it leaks" in likeness
    assert (
        "Dashed: held-out images, which are not trained on"
        in (tmp_path / "report" / "charts" / "loss-text2img.svg").read_text()
    )


def test_page_shows_text_as_text(page):
    assert "asuka, <green> background" in page.words
    assert "Two & one" in page.words
    assert "0.3 toon + 0.7 anime" in page.words
    assert "the weight of theta1: 0 is toon alone, 1 is anime alone" in page.words


def test_page_shows_settings_of_the_pictures(page):
    assert re.search(r"Steps 25", words(page))
    assert "abababababababab" in page.words


def test_single_variant_offers_a_sweep_and_a_sweep_is_shown(page, wide_world):
    assert "dvc exp run" in page.words
    wide = words(Page(page_html(read_world(wide_world, WIDE))))
    assert "dvc exp run" not in wide
    assert re.search(r"no LoRA merge rank 2 text2img LoRA rank 4 text2img LoRA 0\.7 toon \+ 0\.3 anime", wide)


def test_report_is_the_same_bytes_again(world, tmp_path):
    digests = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        write_report(read_world(world), folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        digests.append({str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert digests[0] == digests[1]
    assert {name for name in digests[0] if not name.startswith(("cards/", "images/", "dataset/", "lora/"))} == {
        "grid.png",
        "charts/sweep-text2img.png",
        "print/grid.svg",
        "print/sweep-text2img.svg",
        "print/sweep-dreambooth.svg",
        "charts/sweep-dreambooth.png",
        "charts/scores-clip_similarity.svg",
        "charts/scores-dino_similarity.svg",
        "charts/scores-prompt_similarity.svg",
        "charts/trade-off.svg",
        *(f"charts/{name}-{kind}.svg" for name in CHART_FILES.values() for kind in ("text2img", "dreambooth")),
        "contrasts.csv",
        "distances.csv",
        "costs.csv",
        "findings.txt",
        "cells.csv",
        "cells.parquet",
        "levels.csv",
        "metrics.json",
        "loss.csv",
        "held_out_loss.csv",
        "learning_rate.csv",
        "grad_norm.csv",
        "index.html",
    }


def test_page_shows_the_histories_and_the_previews_of_the_trainings(tmp_path):
    root = write_world(tmp_path)
    write_previews(root / "lora" / TEXT2IMG.name / PREVIEWS)
    page = Page(page_html(read_world(root)))
    said = words(page)
    drawn = (
        "text2img LoRA, rank 4: previews drawn while training, from the same noise asuka, <green> background step 50 step 100"
    )
    assert f"{drawn} a portrait step 50 step 100" in said
    assert "DreamBooth LoRA, rank 4: previews" not in said
    assert said.count("Dashed: held-out images, which are not trained on") == 1
    assert said.count("LoRA gradient norm") == 2
    assert len({address for address in page.addresses if address.startswith("lora/")}) == 4


def test_page_does_not_say_where_it_was_made(world):
    assert str(world) not in page_html(read_world(world))


def test_grid_shows_every_variant(world):
    comparison = read_world(world)
    image = draw_grid(main_grid(comparison), comparison.config)
    shown = {colour for _, colour in image.getcolors(image.width * image.height) or []}
    assert {COLOURS[variant.kind] for variant in comparison.results.sweep.leading} <= shown


def test_our_own_headings_can_be_drawn_by_any_font(wide_world):
    texts = [text for grid in grids(read_world(wide_world, WIDE)).values() for text in grid.texts]
    assert len(texts) > 10
    assert all(text.isascii() for text in texts)


def test_removed_variant_is_left_out(wide_world):
    narrow = page_html(read_world(wide_world, NARROW))
    assert "rank 2" not in narrow
    assert "anime" not in narrow


def test_other_prompts_in_one_variant_are_refused(tmp_path):
    write_variant(tmp_path, Variant("theta0"))
    write_variant(tmp_path, Variant("merge", 0.7), seeds=[3, 5, 9])
    with pytest.raises(ValueError, match=r"a0\.7: has other prompts or seeds"):
        read_results(NARROW, tmp_path / "images", tmp_path / "embeddings", tmp_path / "raw", {})


def test_embeddings_of_other_images_or_by_other_encoders_are_refused(tmp_path):
    write_world(tmp_path)
    rewrite(tmp_path, "theta1", file_names=["p9-s9.png"] * 18)
    with pytest.raises(ValueError, match=r"theta1\.safetensors: not the embeddings of these images; run the stage embed again"):
        read_world(tmp_path)
    rewrite(tmp_path, "theta1", file_names=[cell.file_name for cell in cells()], encoders={"clip": "c", "dino": "another"})
    with pytest.raises(ValueError, match=r"theta1\.safetensors: by other encoders than"):
        read_world(tmp_path)


@pytest.mark.parametrize(("value", "text"), [(0.1234, "+0.123"), (-0.5, "−0.500"), (-0.0001, "0.000"), (0.0, "0.000")])
def test_differences_carry_their_sign(value, text):
    assert signed(value) == text


def test_numbers_in_words():
    assert number(-0.0001) == "0.000"
    assert bounds(Interval(0, -0.1, 0.1)) == "−0.100 to 0.100"
    assert bounds(Interval(0, None, None)) == ""


def test_marks_grow_with_the_files_and_trends_are_drawn_for_sweeps(wide_world):
    from stages.report.plots import LARGEST_MARK, trade_off, trends

    comparison = read_world(wide_world, WIDE)
    large, *_ = comparison.files.values()
    large.write_bytes(large.read_bytes() + bytes(3 * large.stat().st_size))
    chart = trade_off(comparison)
    assert chart is not None
    radii = {mark["name"]: mark["radius"] for mark in chart["marks"]}
    assert radii["toon"] is None
    assert sorted({radius for radius in radii.values() if radius}) == [LARGEST_MARK / 2, LARGEST_MARK]
    assert [mark["number"] for mark in chart["marks"]] == [str(number) for number in range(1, len(radii) + 1)]
    titles = [trend.title for trend in trends(comparison)]
    assert titles[0] == "Likeness gained by naming the subject, by rank"
    assert len(titles) == 6
    assert [len(marks) for trend in trends(comparison) for _, marks in trend.rows.values()] == [2] * 6


def test_one_alpha_and_one_rank_have_no_trend_and_marks_that_differ_no_numbers(world):
    from stages.report.plots import trade_off, trends

    chart = trade_off(read_world(world))
    assert chart is not None and {mark["number"] for mark in chart["marks"]} == {""}
    assert trends(read_world(world)) == []


def test_a_preview_of_another_program_is_refused_by_its_name(tmp_path):
    root = write_world(tmp_path)
    write_previews(root / "lora" / TEXT2IMG.name / PREVIEWS)
    stranger = root / "lora" / TEXT2IMG.name / PREVIEWS / "p7-step000001.png"
    Image.new("RGB", (8, 8)).save(stranger)
    with pytest.raises(ValueError, match=r"p7-step000001\.png: does not say its prompt"):
        read_world(root)


def test_a_word_is_shown_beside_the_loras(tmp_path):
    sweep = replace(SWEEP, vectors=(4, 1))
    comparison = read_world(write_world(tmp_path, sweep), sweep)
    page = page_html(comparison)
    assert "textual inversion, 4 vectors" in page and "textual inversion, 1 vector" in page
    assert "rank 4, 4 vectors" in page, "a choice of sizes for both"
    assert [chart.title for chart in trends(comparison) if "vectors" in chart.title]
    assert not [chart.title for chart in trends(comparison) if "by rank" in chart.title], "one rank is no axis"
    measures, found = reached(comparison)
    word = found["textual_inversion-a0.7-v4-s0"][0]
    assert measures[0].key == "subject_fidelity" and word is not None
    assert word.mean == pytest.approx(LIKENESS["textual_inversion"] + 0.01 + 16 / 3000, abs=1e-6)


def test_the_card_of_a_word_and_the_methods_say_how_to_use_it_and_how_it_was_taught(tmp_path):
    sweep = replace(SWEEP, vectors=(4,))
    comparison = read_world(write_world(tmp_path, sweep), sweep)
    card = render_card(comparison, sweep.leading_lora("textual_inversion"))
    assert 'pipeline.load_textual_inversion("THIS REPOSITORY", weight_name="learned_embeds.safetensors")' in card
    assert "load_lora_weights" not in card
    assert 'pipeline("<asuka>, <green> background")' in card
    assert "textual-inversion" in card
    told = "textual inversion: a word of 4 vectors, begun as “anime portrait” (textual inversion), trained for"
    assert told in methods(comparison)


def test_the_methods_say_what_of_a_training_is_not_the_usual(tmp_path):
    plain = read_world(write_world(tmp_path, NARROW), NARROW)
    unusual = {"loss_type": "huber", "huber_c": 0.2, "noise_offset": 0.1, "max_timestep": 800, "ema_decay": 0.99}
    unusual |= {"block_lr": {"M00": 0.5}, "loraplus_lr_ratio": 16.0}
    changed = replace(plain, trainings={kind: {**settings, **unusual} for kind, settings in plain.trainings.items()})
    said = [
        "with the pseudo-Huber loss (huber, c = 0.2, schedule: snr)",
        "with a noise offset of 0.1",
        "at timesteps from 0 to before 800",
        "with M00 at 0.5 times the rate",
        "the second factors at 16 times the rate (LoRA+)",
        "the weights averaged over the steps (decay 0.99)",
    ]
    for words in said:
        assert words in methods(changed)
        assert words not in methods(plain)
