import io
import sys

from stages.pipeline import progress
from stages.pipeline.progress import complain, say, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_say_how_many_and_what_else(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    done = []
    for item in track(range(5), "training", 7, 2, lambda: f"loss 0.{len(done)}"):
        done.append(item)
    lines = capsys.readouterr().err.splitlines()
    assert done == [0, 1, 2, 3, 4]
    assert [line.split(",")[0] for line in lines] == [f"training: {number}/7" for number in range(3, 8)]
    assert lines[0].startswith("training: 3/7, ")
    assert lines[0].endswith(" s left, loss 0.1")
    assert lines[-1].startswith("training: 7/7, ")
    assert ", loss 0.5, " in lines[-1]


def test_nothing_is_said_where_there_is_nothing_else(capsys):
    assert list(track(iter("ab"), "reading")) == ["a", "b"]
    line = capsys.readouterr().err.strip()
    assert line.startswith("reading: 2 done, ")
    assert line.count(",") == 2


def test_a_terminal_shows_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(track(range(3), "training", status=lambda: "loss 0.5")) == [0, 1, 2]
    shown = sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "training: 100%" in shown
    assert "loss 0.5" in shown


def test_slow_work_is_told_in_seconds_each(monkeypatch, capsys):
    """No "0.0/s"."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    list(track(range(3), "images"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "images: 1/3, 40.0 s each, 80 s left"
    assert "0.0/s" not in "".join(lines)


def test_what_is_said_stands_on_lines_of_its_own(monkeypatch, capsys):
    """The bar is cleared before, and drawn again below."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    for _ in track(range(3), "training"):
        say("113 ms a step")
        complain("warning: one")
    for text in ("113 ms a step\n", "warning: one\n"):
        before = terminal.getvalue().partition(text)[0]
        assert before.rpartition("\r")[2].strip() == "", "nothing stands on the line before it"


def test_work_that_is_left_closes_its_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    tracked = track(range(3), "training")
    next(tracked)
    tracked.close()
    assert sys.stderr.getvalue().endswith("\n")  # pyright: ignore[reportAttributeAccessIssue]
