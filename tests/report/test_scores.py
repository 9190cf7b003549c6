import pytest

from stages.drawing.cells import Cell, cells_of
from stages.report.scores import Interval, differences, mean_interval, read_scores, select, student_quantile, write_scores

CELLS = cells_of(["a", "b"], [0, 1])


def test_scores_come_back(tmp_path):
    scores = {cell: {"prompt_similarity": cell.seed / 4, "reference_similarity": -0.5} for cell in CELLS}
    write_scores(tmp_path / "a.csv", scores)
    assert read_scores(tmp_path / "a.csv", CELLS) == scores


def test_stale_scores_are_refused(tmp_path):
    write_scores(tmp_path / "a.csv", {cell: {"prompt_similarity": 0.0, "reference_similarity": 0.0} for cell in CELLS})
    with pytest.raises(ValueError, match="stage score again"):
        read_scores(tmp_path / "a.csv", cells_of(["a", "another prompt"], [0, 1]))


def test_missing_scores_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"theta0\.csv.*stage score"):
        read_scores(tmp_path / "theta0.csv", CELLS)


def test_interval_is_students_over_the_means_of_seeds():
    values = {Cell(0, "a", 0): 0.0, Cell(1, "b", 0): 2.0, Cell(0, "a", 1): 3.0, Cell(1, "b", 1): 3.0, Cell(0, "a", 2): 5.0}
    means = [1.0, 3.0, 5.0]
    half_width = 4.30265273 * 2.0 / 3**0.5  # Student's t for 2 degrees of freedom, from the tables
    expected = (3.0 - half_width, 3.0 + half_width)
    interval = mean_interval(values)
    assert interval.mean == pytest.approx(sum(means) / 3)
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_one_seed_has_no_interval():
    assert mean_interval({Cell(0, "a", 0): 0.5, Cell(1, "b", 0): 0.75}) == Interval(0.625, None, None)


def test_pairing_takes_out_what_the_seeds_share():
    baseline = {cell: cell.seed * 10.0 for cell in cells_of(["a"], range(4))}
    better = {cell: value + 1 for cell, value in baseline.items()}
    interval = mean_interval(differences(better, baseline))
    assert (interval.low, interval.high) == pytest.approx((1, 1))
    assert interval.sign == 1
    assert mean_interval(baseline).sign == 0


def test_select_by_prompt():
    scores = {cell: {"m": float(cell.prompt_index)} for cell in CELLS}
    assert select(scores, "m", {1}) == {cell: 1.0 for cell in CELLS if cell.prompt_index == 1}
    assert select(scores, "m", {0, 1}).keys() == set(CELLS)


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (7, 2.36462), (30, 2.04227), (1000, 1.96234)])
def test_students_quantile_is_that_of_the_tables(degrees, quantile):
    assert student_quantile(degrees) == pytest.approx(quantile, rel=1e-5)
