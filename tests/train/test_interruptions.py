"""Trainings that are interrupted by a signal, damaged files, and results that DVC could not note."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.train.running import ROOT, TEXT2IMG, arguments, digests, kill_at_a_checkpoint, run_stage, write_params

pytestmark = pytest.mark.stage

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
SETTINGS = {"max_train_steps": 60, "checkpointing_steps": 1000, "lora_dropout": 0.2}


def folder_of(root: Path, out: str) -> Path:
    """Where the run that writes `out` keeps what it needs to go on."""
    (folder,) = (path for path in (root / ".checkpoints/train_text2img" / out).iterdir() if path.name != "damaged")
    return folder


def hear_interrupts() -> None:
    """In the new process: as on a terminal, even if the tests themselves run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(root: Path, number: int, whole_group: bool, **options) -> tuple[int, str]:
    """Start a training, send it a signal when it is about at step 20; its status and what it said on stderr."""
    command = [sys.executable, "-m", "stages.train_text2img", *arguments(**options)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": hear_interrupts}
    with subprocess.Popen(command, cwd=root, env=ENVIRONMENT, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "ms a step" in line:
                break
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        (os.killpg if whole_group else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=120)
    until = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in family):
        assert time.monotonic() < until, "processes are left"
        time.sleep(0.05)
    return process.returncode, said


@pytest.mark.parametrize(
    ("number", "status", "processes", "whole_group"),
    [
        (signal.SIGINT, 130, 1, True),
        (signal.SIGTERM, 143, 1, False),
        (signal.SIGINT, 130, 2, True),
        (signal.SIGTERM, 143, 2, False),
        (signal.SIGKILL, -9, 2, False),
    ],
)
def test_a_signal_leaves_a_checkpoint_of_a_whole_step_and_one_line(encoded, number, status, processes, whole_group):
    """From a terminal, to all processes; from a scheduler, to the first one; or it is killed."""
    write_params(encoded, train_text2img=SETTINGS | {"num_processes": processes})
    whole, cut = f"whole-{processes}", f"cut-{processes}-{status}"
    if not (encoded / whole).exists():
        run_stage("train_text2img", **TEXT2IMG, out=whole)
    code, said = interrupt(encoded, number, whole_group, **TEXT2IMG, out=cut)
    assert code == status
    assert number == signal.SIGKILL or said.splitlines()[-1].startswith("train_text2img: interrupted: ")
    assert "Traceback" not in said
    assert not (encoded / cut).exists()
    step = torch.load(folder_of(encoded, cut) / "checkpoint.pt", weights_only=True)["step"]
    assert 20 <= step < 60
    if processes == 1:
        assert f"step {step} is done, and its checkpoint written; the same command goes on from there" in said
    run_stage("train_text2img", **TEXT2IMG, out=cut)
    assert digests(encoded / cut) == digests(encoded / whole)


def test_what_is_expected_is_what_is_left(encoded, capsys):
    write_params(encoded, train_text2img=SETTINGS)
    interrupt(encoded, signal.SIGINT, True, **TEXT2IMG, out="told")
    step = torch.load(folder_of(encoded, "told") / "checkpoint.pt", weights_only=True)["step"]
    run_stage("train_text2img", **TEXT2IMG, out="told")
    said = capsys.readouterr().out
    assert re.search(rf"expected: about 0 min \d+ s for the {60 - step} steps left and", said), said
    assert f"going on after step {step}" in said


def test_damaged_checkpoints_are_set_aside_and_the_run_starts_over(encoded, capsys):
    """A bit that flipped anywhere, or a file that was cut short."""
    settings = {"max_train_steps": 30, "checkpointing_steps": 2}
    write_params(encoded, train_text2img=settings)
    run_stage("train_text2img", **TEXT2IMG, out="unharmed")
    for harm in ("flip", "cut"):
        out = f"harmed-{harm}"
        kill_at_a_checkpoint(encoded, "train_text2img", **TEXT2IMG, out=out)
        checkpoint = folder_of(encoded, out) / "checkpoint.pt"
        content = bytearray(checkpoint.read_bytes())
        content[len(content) // 2] ^= 1
        checkpoint.write_bytes(content if harm == "flip" else content[: len(content) // 2])
        capsys.readouterr()
        run_stage("train_text2img", **TEXT2IMG, out=out)
        said = capsys.readouterr().out
        assert f"{checkpoint.relative_to(encoded)}: not what was written: set aside in" in said.replace(f"{encoded}/", "")
        assert "going on after step" not in said
        assert digests(encoded / out) == digests(encoded / "unharmed")


def test_a_result_that_dvc_could_not_note_is_there_again_in_no_time(encoded, capsys):
    """Another dvc command held the lock as the training ended; before the next run, DVC deletes the output."""
    write_params(encoded, train_text2img={"max_train_steps": 12})
    run_stage("train_text2img", **TEXT2IMG, out="lost")
    before = digests(encoded / "lost")
    shutil.rmtree(encoded / "lost")
    capsys.readouterr()
    run_stage("train_text2img", **TEXT2IMG, out="lost")
    said = capsys.readouterr()
    assert "lost: this very run has ended before: its result is taken from" in said.out
    assert "training" not in said.err
    assert digests(encoded / "lost") == before


def test_killed_between_the_end_and_the_note_of_it(encoded):
    """The result is kept as soon as the output is there, before the stage ends."""
    write_params(encoded, train_text2img={"max_train_steps": 12})
    script = (
        "import os, signal, sys\nfrom stages import train_text2img\nfrom stages.pipeline import command\n"
        "real = train_text2img.stage\n"
        "def stage(**options):\n    real(**options)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "stage.__annotations__, stage.__signature__ = real.__annotations__, __import__('inspect').signature(real)\n"
        "stage.__code__ = stage.__code__.replace(co_filename=real.__code__.co_filename)\n"
        "command.run(stage, sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, *arguments(**TEXT2IMG, out="killed")]
    done = subprocess.run(command, cwd=encoded, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = digests(encoded / "killed")
    shutil.rmtree(encoded / "killed")
    run_stage("train_text2img", **TEXT2IMG, out="killed")
    assert digests(encoded / "killed") == before
