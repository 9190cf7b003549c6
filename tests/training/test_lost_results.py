"""Checkpoints that were damaged, and results that DVC could not note."""

import shutil
import signal
import subprocess
import sys

import pytest

from tests.training.running import (
    TEXT2IMG,
    arguments,
    digests,
    environment,
    folder_of,
    kill_at_a_checkpoint,
    run_stage,
    write_params,
)

pytestmark = [pytest.mark.stage, pytest.mark.usefixtures("in_the_world")]


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
    done = subprocess.run(command, cwd=encoded, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = digests(encoded / "killed")
    shutil.rmtree(encoded / "killed")
    run_stage("train_text2img", **TEXT2IMG, out="killed")
    assert digests(encoded / "killed") == before
