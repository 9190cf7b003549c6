import re

import pytest

from stages.pipeline.summary import LEGEND, main
from stages.report.report import write_report
from tests.report.small_comparison import DREAMBOOTH, TEXT2IMG, leak, read_world, write_world


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a world in which the DreamBooth LoRA leaks."""
    root = tmp_path_factory.mktemp("summary")
    leak(write_world(root), DREAMBOOTH)
    (root / "report").mkdir()
    write_report(read_world(root), root / "report")
    return root / "report"


@pytest.fixture
def printed(report, capsys):
    main(report)
    return capsys.readouterr().out.splitlines()


def test_summary_says_where_the_report_is(printed):
    assert printed[1].endswith("report/index.html")
    assert printed[2].endswith("report/grid.png")


def test_summary_shows_the_measures_of_every_variant_with_their_intervals(printed):
    """Three prompts of each list, a hundredth apart: Student's t is 4.303 for one list, and 2.776 for the difference of two."""
    head, *lines = printed[4:10]
    names = ["specificity", "likeness to subject", "leak", "likeness to prompt", "to other prompts"]
    assert [head.index(name) for name in names] == sorted(head.index(name) for name in names)
    table = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert list(table) == ["theta0", "theta1", "a0.7", TEXT2IMG.name, DREAMBOOTH.name]
    asked, elsewhere = "0.265 [0.240, 0.290]", "0.295 [0.270, 0.320]"
    assert table["a0.7"] == f"0.270 [0.247, 0.293] 0.415 [0.390, 0.440] 0.145 [0.120, 0.170] {asked} {elsewhere}"
    assert table[TEXT2IMG.name] == f"0.370 [0.347, 0.393] 0.515 [0.490, 0.540] 0.145 [0.120, 0.170] {asked} {elsewhere}"
    assert table[DREAMBOOTH.name] == (
        f"0.170 [0.147, 0.193] 0.715 [0.690, 0.740] 0.545 [0.520, 0.570] {asked} 0.095 [0.070, 0.120]"
    )


def test_summary_ends_with_what_was_found(printed, report):
    found = (report / "findings.txt").read_text().splitlines()
    assert found[0].startswith("The question declared beforehand: text2img LoRA, rank 4 ")
    assert printed[-len(found) :] == found
    assert printed[11 : 11 + len(LEGEND)] == list(LEGEND)


def test_the_table_and_its_legend_fit_into_a_wide_terminal(printed):
    assert all(len(line) <= 132 for line in printed[4 : 11 + len(LEGEND)])


def summarised(root, capsys):
    """The table of the world in a folder: its headings, and the texts of each variant."""
    write_world(root)
    (root / "report").mkdir()
    write_report(read_world(root), root / "report")
    main(root / "report")
    head, *lines = (re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()[4:10])
    return head, {name: values for name, *values in lines}


def test_where_no_other_prompt_is_drawn_nothing_is_said_of_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tests.report.small_comparison.OTHER_PROMPTS", [])
    head, table = summarised(tmp_path, capsys)
    assert head == ["likeness to subject", "likeness to prompt"]
    assert table["a0.7"] == ["0.415 [0.390, 0.440]", "0.265 [0.240, 0.290]"]


def test_what_is_of_one_prompt_has_no_interval(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tests.report.small_comparison.SUBJECT_PROMPTS", ["asuka"])
    _, table = summarised(tmp_path, capsys)
    elsewhere = "0.125 [0.100, 0.150]"  # 0.1, and one, two and three hundredths for the prompts
    assert table["a0.7"] == ["0.280", "0.405", elsewhere, "0.255", "0.275 [0.250, 0.300]"]
