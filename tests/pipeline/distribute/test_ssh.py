"""Stages on two machines that ssh reaches, and that share a remote of DVC with this one and nothing else."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.pipeline.distribute import machines
from tests.pipeline.distribute.toy import ROOT, Toy

pytest.importorskip("parsl")
pytestmark = [
    pytest.mark.stage,
    pytest.mark.skipif(not machines.is_there(), reason="takes root, sshd and ip: apt install openssh-server iproute2"),
]


@pytest.fixture
def toy(tmp_path) -> Toy:
    toy = Toy(tmp_path / "toy", seconds=4)
    toy.add_remote()
    (tmp_path / "scratch").mkdir()
    return toy


@pytest.fixture
def two(toy, tmp_path):
    with machines.running(tmp_path / "ssh", [toy.root, tmp_path / "scratch", ROOT / "stages"]) as running:
        yield running


@pytest.fixture
def serial(tmp_path) -> Toy:
    serial = Toy(tmp_path / "serial", seconds=4)
    serial.dvc("repro")
    return serial


def words(toy: Toy, two: machines.Machines) -> list[str]:
    return [
        "cluster=ssh",
        "cluster.remote=storage",
        f"cluster.scratch={scratch(toy)}",
        "cluster.executors.0.hosts=[one,two]",
        f"cluster.executors.0.programs={Path(sys.executable).parent}",
        f"cluster.executors.0.ssh_options='-F {two.config}'",
    ]


def scratch(toy: Toy) -> Path:
    return toy.root.parent / "scratch"


def finish(process) -> str:
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    return output


def processes(toy: Toy) -> list[psutil.Process]:
    """Of machines, which know the folder for what they fetch."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(scratch(toy)) in " ".join(process.cmdline()) and "stages.pipeline.distribute" not in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def all_gone(toy: Toy, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while processes(toy):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_machines_make_what_dvc_makes(toy, two, serial):
    finish(toy.start(*words(toy, two)))
    assert toy.lock() == serial.lock()
    assert toy.data() == serial.data()
    assert {event["host"] for event in toy.events("done")} == {"one", "two"}
    assert all_gone(toy)
    assert not list(scratch(toy).glob("keys/*/*"))


def test_a_machine_that_is_cut_off_ends_what_it_does_and_the_other_one_goes_on(toy, two, serial):
    process = toy.start(*words(toy, two))
    deadline = time.monotonic() + 60
    while len([each for each in processes(toy) if "step" in " ".join(each.cmdline())]) < 2:
        assert time.monotonic() < deadline, "they did not begin"
        time.sleep(0.1)
    two.link("two", "down")
    finish(process)
    assert toy.lock() == serial.lock()
    assert toy.data() == serial.data()
    assert toy.events("lost")
    assert {event["host"] for event in toy.events("done") if event["at"] > toy.events("lost")[0]["at"]} == {"one"}
    assert all_gone(toy)


def test_a_machine_that_is_not_there_is_said(toy, two):
    two.link("one", "down")
    two.link("two", "down")
    process = toy.start(*words(toy, two))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "No route to host" in output or "Connection timed out" in output
