"""The stage's name is this file's name, so params.yaml has a section `test_command`."""

from pathlib import Path

import pytest
from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import strict


@dataclass(frozen=True, config=strict)
class Config:
    value: int


@dataclass(frozen=True, config=strict)
class Extra:
    word: str


def stage(config: Config, extra: Extra, alpha: float, out: Path, lora: Path | None = None) -> None:
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
    assert "--alpha FLOAT" in text
