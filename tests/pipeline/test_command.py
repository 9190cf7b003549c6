"""The stage's name is this file's name, so params.yaml has a section `test_command`."""

import importlib
import inspect
import os
import re
from pathlib import Path

import pytest
from pydantic.dataclasses import dataclass

from stages.pipeline.command import option_helps, run
from stages.pipeline.config import strict

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, config=strict)
class Config:
    value: int


@dataclass(frozen=True, config=strict)
class Extra:
    word: str


def stage(config: Config, extra: Extra, alpha: float, out: Path, lora: Path | None = None) -> None:
    """Write what was given.

    Args:
        config: a number.
        extra: a word.
        alpha: the weight of the second,
            in 100 % of all cases.
        out: the file to write.

    Raises:
        ValueError: the number is negative.
    """
    if config.value < 0:
        raise ValueError(f"{out}: value is negative\nand so on")
    out.write_text(f"{config.value} {extra.word} {alpha} {lora}")


@pytest.fixture(autouse=True)
def params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("test_command: {value: 3}\nextra: {word: hello}\n")


def test_options_and_sections():
    run(stage, ["--alpha", "0.7", "--out", "o.txt"])
    assert Path("o.txt").read_text() == "3 hello 0.7 None"
    run(stage, ["--alpha", "0.7", "--out", "o.txt", "--lora", "x"])
    assert Path("o.txt").read_text() == "3 hello 0.7 x"


def test_braces_are_filled_in_with_the_value_as_it_was_written():
    run(stage, ["--out", "o-a{alpha}.txt", "--lora", "l-r{rank}", "--alpha", "0.70", "--rank", "4"])
    assert Path("o-a0.70.txt").read_text() == "3 hello 0.7 l-r4"


def test_an_option_that_fills_nothing_in_is_still_unknown(capsys):
    with pytest.raises(SystemExit) as stop:
        run(stage, ["--out", "o.txt", "--alpha", "0.7", "--rank", "4"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --rank 4" in capsys.readouterr().err


def test_braces_that_name_no_option_stay():
    run(stage, ["--out", "{curly}.txt", "--alpha", "0.7"])
    assert Path("{curly}.txt").exists()


def test_what_is_filled_in_leads_into_no_other_folder(capsys):
    with pytest.raises(SystemExit):
        run(stage, ["--out", "a{rank}", "--alpha", "0.7", "--rank", "/../../b"])
    assert "--rank: given '/../../b': it is part of a file's name" in capsys.readouterr().err


def test_an_error_is_one_line_a_problem(capsys):
    Path("params.yaml").write_text("test_command: {value: -3}\nextra: {word: hello}\n")
    with pytest.raises(SystemExit) as stop:
        run(stage, ["--alpha", "0.7", "--out", "o.txt"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "test_command: error: o.txt: value is negative\ntest_command: error: and so on\n"


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit):
        run(stage, ["--help"])
    text = capsys.readouterr().out
    assert "The stage's name is this file's name" in text
    assert "--alpha FLOAT  the weight of the second, in 100 % of all cases." in text
    assert re.search(r"--out PATH +the file to write\.\n", text)


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "stages").glob("[!_]*.py")])
def test_every_option_of_every_stage_is_explained(name):
    stage = importlib.import_module(f"stages.{name}").stage
    assert set(option_helps(stage)) == set(inspect.signature(stage).parameters)


def test_a_disk_that_is_full_ends_the_stage_before_and_after_its_work(monkeypatch, capsys):
    """After it, too: DVC writes dvc.lock then, and would leave half of it."""
    options = ["--alpha", "0.7", "--out", "o.txt"]
    free = iter([2**40, 2**20, 2**20])
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((1, 1, 0, 0, next(free), 0, 0, 0, 0, 255)))
    for written in (True, False):
        Path("o.txt").unlink(missing_ok=True)
        with pytest.raises(SystemExit) as stop:
            run(stage, options)
        assert stop.value.code == 1
        said = capsys.readouterr().err
        assert "1 MiB are free on this disk, and DVC needs 32 MiB" in said
        assert said.count("\n") == 1
        assert Path("o.txt").exists() == written
