import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from stages.comparison.page import bounds, data_uri, number, render_page, signed
from stages.comparison.report import main_grid, write_report
from stages.comparison.results import read_results
from stages.comparison.scores import Interval
from stages.comparison.variants import Sweep, Variant
from tests.comparison.small_comparison import COLOURS, SWEEP, read_world, write_samples, write_variant, write_world

WIDE = Sweep(("theta0", "theta1"), (0.7, 0.3), {"text2img": (4, 2), "dreambooth": ()})
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
    return Page(render_page(read_world(world)))


def words(page: Page) -> str:
    return re.sub(r"\s+", " ", page.words)


def test_page_needs_no_other_file(page):
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert page.open == []


def test_page_shows_every_image_and_the_training_images(page):
    images = [address for address in page.addresses if address.startswith("data:")]
    assert len(images) == 5 * 2 * 3 + 3
    assert len(set(images)) == 5 * 2 + 3


def test_page_says_what_was_gained_where_it_was_asked_for(page):
    assert re.search(
        r"text2img LoRA rank 4, compared with the same model without it .* \+0\.100 0\.453 → 0\.553, clearly higher",
        words(page),
    )
    assert re.search(r"DreamBooth LoRA rank 4.* \+0\.300 0\.453 → 0\.753, clearly higher", words(page))
    assert "higher in 3 of 3" in words(page)
    assert re.search(r"where the prompt does not ask for it 0\.000", words(page))


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
    wide = words(Page(render_page(read_world(wide_world, WIDE))))
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
    assert set(digests[0]) == {
        "grid.png",
        "sweep-text2img.png",
        "sweep-dreambooth.png",
        "scores.csv",
        "variants.csv",
        "metrics.json",
        "loss.csv",
        "validation_loss.csv",
        "learning_rate.csv",
        "grad_norm.csv",
        "index.html",
    }


def test_page_shows_the_courses_of_training_and_what_was_drawn_on_the_way(tmp_path):
    root = write_world(tmp_path)
    write_samples(root / "lora" / "text2img-a0.7-r4" / "samples")
    page = Page(render_page(read_world(root)))
    said = words(page)
    assert re.search(r"text2img LoRA, rank 4: drawn on the way, from the same noise a portrait step 50 step 100 asuka", said)
    assert "DreamBooth LoRA, rank 4: drawn on the way" not in said
    assert said.count("Dashed: images that are not trained on") == 1
    assert said.count("LoRA gradient norm") == 2
    images = [address for address in page.addresses if address.startswith("data:")]
    assert len(images) == 5 * 2 * 3 + 3 + 4


def test_page_does_not_say_where_it_was_made(world):
    assert str(world) not in render_page(read_world(world))


def test_tables_hold_the_scores(world, tmp_path):
    write_report(read_world(world), tmp_path)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert len(rows) == 5 * 3
    (row,) = [row for row in rows if row["variant"] == "dreambooth-a0.7-r4" and row["prompt"] == "asuka, <green> background"]
    assert float(row["reference_similarity"]) == pytest.approx(0.7 + 16 / 300, abs=1e-4)
    assert float(row["reference_similarity_gain"]) == pytest.approx(0.3, abs=1e-4)
    assert row["images"] == "3"
    assert all(row["reference_similarity_gain"] == "" for row in rows if row["kind"] in ("theta0", "merge"))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["dreambooth_reference_similarity_gain"] == pytest.approx(0.3)
    assert metrics["text2img_leak"] == 0
    variants = {row["variant"]: row for row in csv.DictReader((tmp_path / "variants.csv").open())}
    assert list(variants) == [variant.name for variant in SWEEP.variants]
    assert variants["text2img-a0.7-r4"]["rank"] == "4"
    assert {name: row["validation_loss"] for name, row in variants.items() if row["validation_loss"]} == {
        "text2img-a0.7-r4": "0.50000"
    }


def test_grid_shows_every_variant(world):
    image = main_grid(read_world(world))
    shown = {colour for _, colour in image.getcolors(image.width * image.height) or []}
    assert set(COLOURS.values()) <= shown


def test_removed_variant_is_left_out(wide_world):
    narrow = render_page(read_world(wide_world, Sweep(("theta0",), (0.7,), {"text2img": (4,)})))
    assert "rank 2" not in narrow
    assert "anime" not in narrow


def test_other_prompts_in_one_variant_are_refused(tmp_path):
    write_variant(tmp_path, Variant("theta0"))
    write_variant(tmp_path, Variant("merge", 0.7), seeds=[3, 5, 9])
    with pytest.raises(ValueError, match=r"a0\.7: has other prompts or seeds"):
        read_results(Sweep(("theta0",), (0.7,), {}), tmp_path / "images", tmp_path / "scores")


def test_large_pictures_are_reduced(tmp_path):
    Image.effect_noise((600, 600), 50).save(tmp_path / "large.png")
    assert data_uri(tmp_path / "large.png").startswith("data:image/webp;base64,")
    assert len(data_uri(tmp_path / "large.png")) < (tmp_path / "large.png").stat().st_size


@pytest.mark.parametrize(("value", "text"), [(0.1234, "+0.123"), (-0.5, "−0.500"), (-0.0001, "0.000"), (0.0, "0.000")])
def test_differences_carry_their_sign(value, text):
    assert signed(value) == text


def test_numbers_in_words():
    assert number(-0.0001) == "0.000"
    assert bounds(Interval(0, -0.1, 0.1)) == "−0.100 to 0.100"
    assert bounds(Interval(0, None, None)) == ""
