import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from stages.report.report import write_report
from tests.pipeline.ci.small_repository import SmallRepository, make_repository
from tests.report.small_comparison import read_world, write_world

pytestmark = pytest.mark.stage

GRIDS = (sys.executable, "-m", "stages.pipeline.ci.regenerate")


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> SmallRepository:
    folder = tmp_path_factory.mktemp("origin")
    (folder / "report").mkdir()
    write_report(read_world(write_world(folder / "world")), folder / "report")
    return make_repository(folder / "repository", folder / "report")


@pytest.fixture
def clone(origin, tmp_path) -> SmallRepository:
    """What CI sees: the files of Git, and a remote."""
    origin.git("clone", "-q", ".", str(tmp_path / "clone"))
    assert not (tmp_path / "clone/data/report").exists()
    return SmallRepository(tmp_path / "clone")


def comment_of(repository: SmallRepository, before: str = "HEAD") -> str:
    repository.run(*GRIDS, "--before", before, "--comment", "comment.md")
    text = (repository.root / "comment.md").read_text()
    for picture in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (repository.root / picture).is_file(), f"{picture} is shown and is not there"
    return text


def rewrite(repository: SmallRepository, change) -> None:
    path = repository.root / "made/metrics.json"
    metrics = json.loads(path.read_text())
    change(metrics)
    path.write_text(json.dumps(metrics))


def test_unchanged_report_is_fetched_and_the_comment_says_so(clone):
    text = comment_of(clone)
    assert "Nothing changed: every score and the grid are those of HEAD." in text
    assert "![grid](data/report/grid.png)" in text
    assert "What changed" not in text
    assert (clone.root / "data/report/index.html").is_file(), "there is a report to upload"


def test_comment_shows_what_changed_and_nothing_else(clone):
    def change(metrics):
        metrics["text2img-a0_7-r4-s0"]["leak_gain"] += 0.25
        metrics["text2img-a0_7-r4-s0"]["prompt_alignment_gain"] += 0.125
        metrics["text2img-a0_7-r8-s0"] = metrics.pop("dreambooth-a0_7-r4-s0")

    rewrite(clone, change)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(clone.root / "made/grid.png")
    text = comment_of(clone)
    table = text[text.index("What changed since HEAD") : text.index("What was found:")].splitlines()
    assert [line for line in table if line.startswith("|")][2:] == [
        "| dreambooth-a0_7-r4-s0 |  |  |  |  | gone |",
        "| text2img-a0_7-r4-s0 | leak_gain | 0.0000 | 0.2500 | +0.2500 | for the worse |",
        "| text2img-a0_7-r4-s0 | prompt_alignment_gain | 0.0000 | 0.1250 | +0.1250 | for the better |",
        "| text2img-a0_7-r8-s0 |  |  |  |  | new |",
    ]
    assert "another training seed would change them too" in text
    assert "![grid before](grid-before.png)" in text
    assert (clone.root / "grid-before.png").read_bytes() != (clone.root / "data/report/grid.png").read_bytes()
    assert "captioner" not in text, "the figures of the mini world are not the experiment's"


def test_comment_says_what_was_found_and_the_measures_of_every_variant(clone):
    text = comment_of(clone)
    found = (clone.root / "data/report/findings.txt").read_text().splitlines()
    assert text[text.index("What was found:") : text.index("Measures:")].splitlines()[2:-1] == [f"- {line}" for line in found]
    assert found[0].startswith("The question declared beforehand: text2img LoRA, rank 4 ")
    assert "| text2img-a0.7-r4-s0 | 0.370 [0.347, 0.393] | 0.515 [0.490, 0.540] | 0.145 [0.120, 0.170] |" in text


def test_other_grid_with_the_same_scores_is_a_change(clone):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(clone.root / "made/grid.png")
    text = comment_of(clone)
    assert "No score changed." in text
    assert "![grid before]" in text


def test_metrics_of_an_older_form_are_no_variants(clone):
    (clone.root / "made/metrics.json").write_text('{"text2img_leak": 0.5}')
    text = comment_of(clone)
    assert "| a0_7 |  |  |  |  | gone |" in text
    assert "text2img_leak" not in text


def test_report_that_is_nowhere_is_said_to_be_missing(clone):
    (clone.root / "empty").mkdir()
    clone.dvc("remote", "modify", "beside", "url", str(clone.root / "empty"))
    text = comment_of(clone)
    assert "There is no report: nothing had to run, and data/report is not on the DVC remote (`dvc push`)." in text
    assert "![" not in text


def test_revision_without_a_report_is_not_compared_with(clone):
    branch = clone.git("branch", "--show-current").strip()
    clone.git("checkout", "-q", "--orphan", "empty")
    clone.git("rm", "-rqf", "dvc.yaml", "dvc.lock")
    clone.commit()
    clone.git("checkout", "-q", branch)
    text = comment_of(clone, before="empty")
    assert "The report of empty is neither in the cache nor on the DVC remote" in text
    assert "![grid](data/report/grid.png)" in text
    assert "grid-before" not in text


def test_plots_show_every_chart_without_a_network(origin, tmp_path):
    shown = origin.dvc("plots", "show", "--out", str(tmp_path / "plots"))
    assert "failed to load" not in shown
    page = (tmp_path / "plots" / "index.html").read_text()
    pictures = re.findall(r'<img src="([^"]*)">', page)
    assert all((tmp_path / "plots" / picture).is_file() for picture in pictures)
    made = origin.root / "made"
    charts = [path for path in (made / "grid.png", *(made / "charts").iterdir()) if path.suffix in (".svg", ".png")]
    assert len(charts) == 13
    assert {Path(picture).name for picture in pictures} == {
        f"workspace_data_report_{'_'.join(path.relative_to(origin.root / 'made').parts)}" for path in charts
    }
    before, _, after = page.rpartition("<img")
    assert not re.search(r'(?:src|href)="?https?:', before), "nothing that is shown waits for a network"
    assert "vega" in after, "the curves come last, where there is one"
    assert "function vegaEmbed" in before


def test_plots_are_ignored_by_git(origin):
    assert origin.git("check-ignore", "dvc_plots/index.html")


def test_dvc_compares_the_experiments_metrics_alone(origin, tmp_path):
    shutil.copytree(origin.root, tmp_path / "copy", symlinks=True)
    copy = SmallRepository(tmp_path / "copy")
    assert list(json.loads(copy.dvc("metrics", "show", "--json"))[""]["data"]) == ["data/report/metrics.json"]

    def rename(metrics):
        metrics["text2img-a0_7-r8-s0"] = metrics.pop("text2img-a0_7-r4-s0")

    rewrite(copy, rename)
    copy.dvc("repro", "--quiet")
    shown = copy.dvc("metrics", "diff", "--md")
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in shown.splitlines()[2:] if line]
    assert {row[0] for row in rows} == {
        f"text2img-a0_7-r{rank}-s0.{name}"
        for rank in (4, 8)
        for name in json.loads((copy.root / "made/metrics.json").read_text())["text2img-a0_7-r8-s0"]
    }
    assert {row[3] for row in rows} == {"-"}, "another model is gone or new, never changed"
