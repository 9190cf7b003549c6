"""The page as a browser shows it: large view, layouts, links, without script, by keyboard, on paper and on a telephone."""

import re
from urllib.parse import unquote

import pytest
from axe_playwright_python.sync_playwright import Axe

from stages.checkpoints.file_names import PREVIEWS
from stages.report.report import write_report
from tests.report import small_comparison
from tests.report.browser import CHROMIUM, Opened, launched
from tests.report.small_comparison import CONFIG, SWEEP, TEXT2IMG, WIDE, read_world, write_previews, write_world

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM to one")

HOSTILE = '<img src="x" onerror="window.ran = 1"></script><script>window.ran = 2</script>'
LONG = "masterpiece" * 180
PROMPTS = [HOSTILE, "asuka, شعر أحمر, خلفية خضراء 👩‍🎨", LONG]


def write_page(root, sweep=SWEEP, config=CONFIG):
    report = root / "report"
    report.mkdir()
    write_previews(root / "lora" / TEXT2IMG.name / PREVIEWS)
    write_report(read_world(root, sweep, config), report)
    return report / "index.html"


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    return write_page(write_world(tmp_path_factory.mktemp("page")))


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory):
    return write_page(write_world(tmp_path_factory.mktemp("wide"), WIDE), WIDE)


@pytest.fixture(scope="module")
def hard_file(tmp_path_factory):
    """A page whose prompts hold HTML, other scripts and two thousand characters without a space."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_comparison, "SUBJECT_PROMPTS", PROMPTS)
        return write_page(write_world(tmp_path_factory.mktemp("hard")))


@pytest.fixture
def opened(browser):
    pages = []

    def open_page(*args, **settings):
        pages.append(Opened(browser, *args, **settings))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


def test_an_image_opens_large_with_its_recipe_and_escape_returns(opened, page_file):
    page = opened(page_file)
    page.cell("3.1.1").click()
    assert page.page.locator("#look").evaluate("dialog => dialog.open")
    assert page.text("look-title") == "text2img LoRA, rank 4"
    assert "Prompt 2 of 6, seed 2 of 3: asuka, glasses" in page.text("look-said")
    assert unquote(page.page.locator("#large").get_attribute("src")) == f"images/{TEXT2IMG.name}/p1-s5.png"
    recipe = re.sub(r"\s+", " ", page.text("recipe"))
    for fact in ("Prompt asuka, glasses", "Seed 5", "Steps 25", f"UNet, sha256 {'ab' * 32}", "Training: rank 4"):
        assert fact in recipe
    assert page.text("again") == (
        f"python -m stages.drawing data/images/{TEXT2IMG.name}/p1-s5.png --again again.png "
        f"--model data/merged/a0.7 --lora data/lora/{TEXT2IMG.name}"
    )
    page.page.keyboard.press("Escape")
    assert not page.page.locator("#look").evaluate("dialog => dialog.open")
    assert page.page.evaluate("document.activeElement.dataset.cell") == "3.1.1"
    assert "open=" not in page.page.url


def test_arrow_keys_walk_along_variant_prompt_and_seed(opened, page_file):
    page = opened(page_file, "#open=2.0.0")
    for key, place in (
        ("ArrowRight", "3.0.0"),
        ("ArrowDown", "3.1.0"),
        ("Shift+ArrowRight", "3.1.1"),
        ("Shift+ArrowLeft", "3.1.0"),
        ("ArrowUp", "3.0.0"),
        ("ArrowUp", "3.5.0"),
        ("ArrowLeft", "2.5.0"),
    ):
        page.page.keyboard.press(key)
        assert page.page.url.endswith(f"#open={place}"), key
    page.page.get_by_label("Next seed").click()
    assert page.page.url.endswith("#open=2.5.1")


def test_another_image_is_laid_over_a_pinned_one(opened, page_file):
    page = opened(page_file)
    page.cell("2.0.0").click()
    page.page.locator("#pin").click()
    assert page.page.locator("#compare").is_hidden()
    page.page.keyboard.press("ArrowRight")
    assert page.page.locator("#large").get_attribute("src") == "images/a0.7/p0-s3.png"
    assert page.page.locator("#over").get_attribute("src") == f"images/{TEXT2IMG.name}/p0-s3.png"
    assert "Left: merge, alpha 0.7, seed 3" in page.text("pinned-said")
    assert "50%" in page.page.locator("#over").evaluate("image => image.style.clipPath")
    page.page.locator("#split").focus()
    page.page.keyboard.press("ArrowRight")
    assert "51%" in page.page.locator("#over").evaluate("image => image.style.clipPath")
    assert page.page.url.endswith("#open=3.0.0&pin=2.0.0"), "the slider keeps its arrow keys"
    page.page.locator("#how").click()
    seen = set()
    for _ in range(8):
        seen.add(page.page.locator("#over").is_visible())
        page.page.wait_for_timeout(200)
    assert seen == {True, False}
    assert page.page.url.endswith("&how=blink")
    page.page.reload()
    assert page.page.locator("#compare").is_visible()


def test_both_layers_zoom_together(opened, page_file):
    page = opened(page_file, "#open=3.0.0&pin=2.0.0")

    def sizes():
        return [page.page.locator(f"#{name}").bounding_box()["width"] for name in ("large", "over")]

    before = sizes()
    page.page.keyboard.press("+")
    after = sizes()
    assert before[0] == before[1]
    assert after == pytest.approx([1.5 * before[0]] * 2, rel=1e-3)
    page.page.keyboard.press("0")
    assert sizes() == pytest.approx(before)


def test_blinking_waits_for_a_hand_where_motion_is_reduced(opened, page_file):
    page = opened(page_file, "#open=3.0.0&pin=2.0.0&how=blink", reduced_motion="reduce")
    page.page.wait_for_timeout(900)
    assert page.page.locator("#over").is_visible()
    page.page.keyboard.press("b")
    assert page.page.locator("#over").is_hidden()


def test_prompts_are_filtered_and_a_link_keeps_it(opened, page_file):
    page = opened(page_file)
    page.page.locator("#choose-words").fill("PORTRAIT, blond")
    assert page.page.locator("[data-prompt]:visible").count() == 1
    assert page.text("said") == "1 of 6 prompts"
    page.page.locator("#choose-words").fill("")
    page.page.locator("#choose-list").select_option("other")
    assert page.page.locator("[data-prompt]:visible").count() == 3
    page.page.reload()
    assert page.page.locator("[data-prompt]:visible").count() == 3
    assert page.page.locator("#choose-list").input_value() == "other"
    page.page.get_by_role("button", name="As it was").click()
    assert page.page.locator("[data-prompt]:visible").count() == 6
    assert "#" not in page.page.url


def test_axes_are_laid_out_as_chosen_and_a_link_keeps_it(opened, wide_file):
    page = opened(wide_file)
    page.page.locator("#choose-rows").select_option("alpha")
    page.page.locator("#choose-columns").select_option("rank")
    grid = page.page.locator("#chosen table")
    assert grid.locator("thead th").all_inner_texts() == ["no LoRA", "rank 2", "rank 4"]
    assert grid.locator("tbody .prompt").all_inner_texts() == ["alpha 0.3", "alpha 0.7"]
    places = grid.locator("td").evaluate_all("cells => cells.map(cell => cell.querySelector('a').href.split('/').at(-2))")
    assert places == [
        *("a0.3", "text2img-a0.3-r2-s0", "text2img-a0.3-r4-s0"),
        *("a0.7", "text2img-a0.7-r2-s0", "text2img-a0.7-r4-s0"),
    ]
    page.page.locator('[data-axis="prompt"]').select_option("4")
    assert "p4-s3.png" in grid.locator("a").first.get_attribute("href")
    before = grid.inner_html()
    page.page.reload()
    assert page.page.locator("#chosen table").inner_html() == before
    assert page.page.locator("#static").is_hidden()
    grid.locator("a").first.click()
    assert page.text("look-title") == "merge, alpha 0.3"


def test_numbers_are_set_against_a_variant(opened, page_file):
    page = opened(page_file)
    page.page.locator("#choose-against").select_option(label="merge, alpha 0.7")
    first_row = page.page.locator("#chosen tbody").first.locator("td")
    to_subject = [cell.locator(".score").first.inner_text() for cell in first_row.all()]
    assert [re.sub(r"\s+", " ", text) for text in to_subject] == [
        "to the subject 0.205 (−0.200)",
        "to the subject 0.305 (−0.100)",
        "to the subject 0.405 (0.000)",
        "to the subject 0.505 (+0.100)",
        "to the subject 0.705 (+0.300)",
    ]
    opened_tables = page.page.locator("details[data-against][open] summary").all_inner_texts()
    assert opened_tables == ["Differences from merge, alpha 0.7"]


@pytest.mark.parametrize(
    "fragment",
    ["#open=99.0.0&rows=nothing&columns=rows&alpha=7&against=x", "#rows=prompt&columns=prompt", "#=", "#scores", "#%"],
)
def test_a_link_to_what_is_not_there_shows_the_page(opened, page_file, fragment):
    page = opened(page_file, fragment)
    assert page.page.locator("#static").is_visible()
    assert not page.page.locator("#look").evaluate("dialog => dialog.open")


def test_without_script_all_is_there(opened, wide_file):
    page = opened(wide_file, java_script_enabled=False)
    links = page.page.locator("a[data-cell]")
    assert set(links.evaluate_all("links => links.map(link => link.dataset.cell)")) == {
        f"{variant}.{prompt}.{seed}" for variant in range(len(WIDE.variants)) for prompt in range(6) for seed in range(3)
    }
    assert page.page.locator("#choose").is_hidden()
    assert page.page.locator("#look").is_hidden()
    page.page.locator("a[data-cell]:visible").first.click()
    assert page.page.url.endswith(".png")


def test_by_keyboard_alone(opened, page_file):
    page = opened(page_file)
    page.page.keyboard.press("Tab")
    assert page.page.evaluate("document.activeElement.textContent") == "To the images"
    page.page.keyboard.press("Enter")
    for _ in range(30):
        page.page.keyboard.press("Tab")
        if page.page.evaluate("Boolean(document.activeElement.dataset.cell)"):
            break
    place = page.page.evaluate("document.activeElement.dataset.cell")
    page.page.keyboard.press("Enter")
    page.page.keyboard.press("p")
    page.page.keyboard.press("ArrowRight")
    assert page.page.locator("#compare").is_visible()
    page.page.keyboard.press("Escape")
    assert page.page.evaluate("document.activeElement.dataset.cell") == place


def test_a_single_file_does_the_same(opened, tmp_path):
    from dataclasses import replace

    file = write_page(write_world(tmp_path), config=replace(CONFIG, single_file=True))
    page = opened(file)
    page.cell("3.0.0").focus()
    page.page.keyboard.press("Enter")
    assert page.page.locator("#large").get_attribute("src").startswith("data:image/png")
    assert page.page.locator("#original").is_hidden()
    page.page.keyboard.press("ArrowRight")
    assert page.page.url.endswith("#open=4.0.0")
    assert page.requests[0] == file.as_uri()
    assert {url[:5] for url in page.requests[1:]} <= {"data:"}


def test_html_in_a_prompt_never_runs(opened, hard_file):
    for fragment in ("", "#rows=model&columns=prompt", "#open=3.0.0&pin=2.1.0"):
        page = opened(hard_file, fragment)
        page.page.wait_for_timeout(100)
        assert page.page.evaluate("window.ran") is None
        assert HOSTILE in page.page.locator("#chosen, #static").filter(visible=True).first.inner_text()
    assert HOSTILE in page.text("look-said")


@pytest.mark.parametrize("fragment", ["", "#rows=model&columns=seed", "#open=3.0.0&pin=2.2.0"])
@pytest.mark.parametrize("width", [375, 768, 2560])
def test_it_fits_telephones_and_wide_screens(opened, hard_file, width, fragment):
    page = opened(hard_file, fragment, viewport={"width": width, "height": 800})
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    if "open" in fragment:
        box = page.page.locator("#look").bounding_box()
        assert box["width"] <= width
        assert page.page.locator("#look").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("fragment", ["", "#rows=alpha&columns=rank&against=2", "#open=3.0.0", "#open=3.0.0&pin=2.0.0"])
def test_axe_finds_nothing(opened, wide_file, fragment, scheme):
    page = opened(wide_file, fragment, color_scheme=scheme)
    page.page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    found = Axe().run(page.page).response["violations"]
    assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found] == []
    page.complaints.clear()


def test_it_prints_on_a4_with_two_columns_of_the_grid(opened, page_file):
    page = opened(page_file)
    page.page.emulate_media(media="print")
    grid = page.page.locator("#static table.grid tr:has(td)").first
    assert len(grid.evaluate("table => getComputedStyle(table).gridTemplateColumns").split()) == 2
    assert page.page.locator("nav").is_hidden()
    pdf = page.page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    sizes = {tuple(map(float, size)) for size in re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)}
    assert [pytest.approx((595, 842), abs=2)] == list(sizes)


def test_the_script_is_small(page_file):
    script = page_file.read_text(encoding="utf-8").rpartition("<script>")[2]
    assert len(script.encode()) <= 25_000
