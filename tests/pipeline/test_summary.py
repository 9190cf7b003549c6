import pytest

from stages.pipeline.summary import main
from stages.pipeline.variants import Variant
from stages.report.report import write_report
from tests.report.small_comparison import leak, read_world, write_world


@pytest.fixture
def printed(tmp_path, capsys):
    leak(write_world(tmp_path), Variant("dreambooth", 0.7, 4))
    (tmp_path / "report").mkdir()
    write_report(read_world(tmp_path), tmp_path / "report")
    main(tmp_path / "report")
    return capsys.readouterr().out.splitlines()


def test_summary_says_where_the_report_is(printed):
    assert printed[1].endswith("report/index.html")
    assert printed[2].endswith("report/grid.png")


def test_summary_says_which_changes_are_harm(printed):
    table = {line.split()[0]: " ".join(line.split()[1:]) for line in printed[4:10] if line.strip()}
    assert table["a0.7"] == "0.453 0.255 0.153 0.255"
    assert table["text2img-a0.7-r4"] == "0.553 (+0.100 good) 0.255 (+0.000 ?) 0.153 (+0.000 ?) 0.255 (+0.000 ?)"
    assert table["dreambooth-a0.7-r4"].endswith("0.553 (+0.400 harm) 0.055 (-0.200 harm)")
    assert all(len(line) < 128 for line in printed[3:])
