import os
from pathlib import Path

import pytest

from benchmarks.turns import Racer, pace, race

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAM = """
import pathlib, time
from turns import Turns
turns = Turns(pathlib.Path("times.json"), steps=6, turn=2)
for step in range(6):
    time.sleep(0.01)
    with open("../order", "a") as file:
        file.write(pathlib.Path.cwd().name)
    turns.step_ended()
"""


def make_racer(folder, program=PROGRAM):
    folder.mkdir()
    return Racer(["-c", program], folder, os.environ | {"PYTHONPATH": str(BENCHMARKS)})


def test_processes_take_turns_and_each_is_timed_without_the_other(tmp_path):
    racers = {name: make_racer(tmp_path / name) for name in "ab"}
    runs = race(racers)
    assert (tmp_path / "order").read_text() == "aabbaabbaabb"
    for name, run in runs.items():
        assert len(run.paces) == 2  # the first turn warms up
        assert min(run.paces) >= 0.01
        assert 0 < run.start < racers[name].seconds
        assert run.memory > 2**20


def test_a_program_that_fails_ends_the_race_and_leaves_no_process(tmp_path):
    racers = {"a": make_racer(tmp_path / "a"), "b": make_racer(tmp_path / "b", "raise ValueError('no such thing')")}
    with pytest.raises(SystemExit, match="no such thing"):
        race(racers)
    process = racers["a"].process
    assert process is not None
    assert process.poll() is not None


def test_the_first_step_of_a_turn_does_not_count():
    assert pace([0.0, 5.0, 6.0, 7.0]) == 1.0
    assert pace([0.0, 5.0]) == 5.0
