import io
import sys

from stages.pipeline import progress
from stages.pipeline.progress import track


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
    assert len(lines) == 6
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
