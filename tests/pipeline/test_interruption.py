import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from stages.pipeline import interruption
from stages.pipeline.interruption import Interrupted, handled, postponed


def hear_signals():
    """As on a terminal: tests that run in the background, or under nohup, are started to ignore some."""
    for number in interruption.SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def on_a_terminal():
    before = {number: signal.getsignal(number) for number in interruption.SIGNALS}
    hear_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_a_signal_is_an_exception_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as raised, handled():
        signal.raise_signal(number)
    assert raised.value.signal_number == number
    assert signal.getsignal(number) is before


def test_a_postponed_signal_is_noted_and_work_goes_on():
    asked = []
    with postponed(lambda: asked.append(True)) as interruption_:
        assert interruption_.signal_number is None
        signal.raise_signal(signal.SIGTERM)
        assert interruption_.signal_number == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)  # at once: of the parent process, or to the whole group
        assert interruption_.signal_number == signal.SIGTERM
    assert asked == [True]


def test_the_second_signal_ends_at_once(monkeypatch):
    monkeypatch.setattr(interruption, "SECONDS_UNTIL_AGAIN", 0.0)
    with pytest.raises(Interrupted), postponed():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_within_a_stage_the_stage_itself_is_interrupted_again():
    with pytest.raises(Interrupted), handled():
        with postponed():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_what_was_started_to_ignore_a_signal_ignores_it():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_nothing_is_changed():
    seen = []

    def work():
        with postponed():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


STAGE = """
import sys, time
from pathlib import Path
from stages.pipeline.command import run
from stages.pipeline.outputs import atomic_directory


def stage(out: Path) -> None:
    with atomic_directory(out) as folder:
        (folder / "half").write_text("1")
        print("working", flush=True)
        time.sleep(60)


run(stage)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stage_that_is_interrupted_leaves_one_line_and_nothing_else(tmp_path, number, status):
    (tmp_path / "busy.py").write_text(STAGE)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "busy.py"), "--out", "out"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, preexec_fn=hear_signals, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == status
    assert said == "busy: interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["busy.py"]
