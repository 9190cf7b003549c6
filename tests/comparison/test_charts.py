import pytest

from stages.comparison.charts import Axis, fit_axis, loss_chart, read_history
from tests.comparison.small_comparison import write_history


def test_axis_places_its_ends():
    axis = Axis(2, 4, 10, 20)
    assert [axis.place(value) for value in (2, 3, 4)] == [10, 15, 20]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [(0, 1000, ["0", "200", "400", "600", "800", "1000"]), (-0.01, 0.01, ["−0.010", "−0.005", "0.000", "0.005", "0.010"])],
)
def test_ticks_are_round(low, high, labels):
    assert [tick.label for tick in Axis(low, high, 0, 100).ticks()] == labels


def test_axis_of_one_value_has_a_width():
    axis = fit_axis([0.3, 0.3], 0, 100)
    assert axis.place(0.3) == 50


def test_axis_shows_all_values():
    axis = fit_axis([0.1, 0.9], 0, 100)
    assert 0 < axis.place(0.1) < axis.place(0.9) < 100


def test_losses_are_averaged(tmp_path):
    write_history(tmp_path / "lora" / "history.csv")
    (curve,) = loss_chart({"rank 4": tmp_path / "lora" / "history.csv"}).curves
    points = [tuple(map(float, point.split(","))) for point in curve.points.split()]
    assert len(points) == 60
    heights = [y for _, y in points]
    assert heights == sorted(heights), "the loss falls, so its curve goes down, where y is larger"


@pytest.mark.parametrize("text", ["step,lost\n1,2\n", "step,loss\n", "step,loss\n1,high\n"])
def test_wrong_history_is_refused(tmp_path, text):
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(ValueError, match=r"history\.csv"):
        read_history(tmp_path / "history.csv")
