"""Trainings that are interrupted by a signal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.training.running import TEXT2IMG, arguments, digests, environment, folder_of, run_stage, write_params

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]

SETTINGS = {"max_train_steps": 60, "checkpointing_steps": 1000, "lora_dropout": 0.2}


def hear_interrupts() -> None:
    """In the new process: as on a terminal, even if the tests themselves run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(root: Path, number: int, whole_group: bool, **options) -> tuple[int, str]:
    """Start a training, send it a signal when it is about at step 20; its status and what it said on stderr."""
    command = [sys.executable, "-m", "stages.train_text2img", *arguments(**options)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": hear_interrupts}
    with subprocess.Popen(command, cwd=root, env=environment(), start_new_session=True, **pipes) as process:
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
    assert f"{60 - step} steps are left: after the first 20 it is said how long they take" in said
    assert f"going on after step {step}" in said
