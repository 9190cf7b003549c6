import pytest

from stages.pipeline.variants import Variant
from stages.report.charts import Axis, fit_axis, line_chart
from stages.report.histories import read_history, write_histories
from tests.report.small_comparison import write_history


def test_axis_begins_and_ends_where_it_shall():
    axis = Axis(2, 4, 10, 20)
    assert [axis.position(value) for value in (2, 3, 4)] == [10, 15, 20]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [(0, 1000, ["0", "200", "400", "600", "800", "1000"]), (-0.01, 0.01, ["−0.010", "−0.005", "0.000", "0.005", "0.010"])],
)
def test_ticks_are_round(low, high, labels):
    assert [tick.label for tick in Axis(low, high, 0, 100).ticks()] == labels


def test_axis_of_one_value_has_a_width():
    axis = fit_axis([0.3, 0.3], 0, 100)
    assert axis.position(0.3) == 50


def test_axis_shows_all_values():
    axis = fit_axis([0.1, 0.9], 0, 100)
    assert 0 < axis.position(0.1) < axis.position(0.9) < 100


def test_losses_are_averaged(tmp_path):
    write_history(tmp_path / "lora" / "history.csv")
    (curve,) = line_chart({"rank 4": read_history(tmp_path / "lora" / "history.csv")}, "loss").curves
    points = [tuple(map(float, point.split(","))) for point in curve.points.split()]
    assert len(points) == 60
    heights = [y for _, y in points]
    assert heights == sorted(heights), "the loss falls, so its curve goes down, where y is larger"


def test_held_out_loss_is_dashed_in_the_colour_of_its_training(tmp_path):
    for name, held_out in (("one", ()), ("two", (50, 100))):
        write_history(tmp_path / name / "history.csv", held_out)
    histories = {name: read_history(tmp_path / name / "history.csv") for name in ("one", "two")}
    chart = line_chart(histories, "loss", held_out="held_out_loss")
    assert [(curve.name, curve.number, curve.dashed) for curve in chart.curves] == [
        ("one", 0, False),
        ("two", 1, False),
        ("two", 1, True),
    ]
    assert [curve.name for curve in chart.legend] == ["one", "two"]
    assert len(chart.curves[2].points.split()) == 2
    assert chart.dashed
    assert not line_chart(histories, "learning_rate").dashed


def test_histories_are_tables_for_plots(tmp_path):
    write_history(tmp_path / "lora" / "history.csv", (50,))
    write_history(tmp_path / "other" / "history.csv")
    histories = {
        Variant("text2img", 0.7, rank, 0): read_history(tmp_path / name / "history.csv")
        for rank, name in ((4, "lora"), (8, "other"))
    }
    write_histories(histories, tmp_path)
    assert (tmp_path / "held_out_loss.csv").read_text() == "variant,step,held_out_loss\ntext2img-a0.7-r4-s0,50,0.5\n"
    rows = (tmp_path / "loss.csv").read_text().splitlines()
    assert rows[:2] == ["variant,step,loss", "text2img-a0.7-r4-s0,1.5,0.75"], "means over sixtieths of the steps"
    assert len(rows) == 1 + 2 * 60


def test_infinite_norms_are_left_out(tmp_path):
    (tmp_path / "history.csv").write_text("step,loss,held_out_loss,learning_rate,grad_norm\n1,1,,1,inf\n2,1,,1,3\n")
    norms = read_history(tmp_path / "history.csv")["grad_norm"]
    assert (norms.steps.tolist(), norms.values.tolist()) == ([2], [3])


HEADER = "step,loss,held_out_loss,learning_rate,grad_norm\n"


@pytest.mark.parametrize("text", ["step,lost\n1,2\n", HEADER, f"{HEADER}1,high,,1,1\n"])
def test_wrong_history_is_refused(tmp_path, text):
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(ValueError, match=r"history\.csv"):
        read_history(tmp_path / "history.csv")


def test_a_trend_puts_values_over_evenly_spaced_ranks_and_leaves_gaps():
    from stages.measures.statistics import Interval
    from stages.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, trend_chart

    def interval(mean, half):
        return Interval(mean, mean - half, mean + half, 6, None, None, None)

    rows = {"text2img": ("#111111", [interval(0.2, 0.1), None, interval(0.4, 0.0)])}
    chart = trend_chart("Leak, by rank", ["rank 2", "rank 4", "rank 8"], rows)
    assert [tick.label for tick in chart.x_ticks] == ["rank 2", "rank 4", "rank 8"]
    gaps = {round(b.position - a.position, 1) for a, b in zip(chart.x_ticks, chart.x_ticks[1:], strict=False)}
    assert gaps == {round((WIDTH - RIGHT - LEFT) / 3, 1)}
    first, last = chart.rows["text2img"][1]
    assert (first.x, last.x) == (chart.x_ticks[0].position, chart.x_ticks[2].position)
    low, mean, high = first.y
    assert HEIGHT - BOTTOM > low > mean > high > TOP, "what is more stands higher"
    assert last.y[0] == last.y[1] == last.y[2]
    assert first.text == "text2img, rank 2: 0.200"
