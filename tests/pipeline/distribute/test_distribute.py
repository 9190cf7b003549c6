"""Stages on two workers of this machine, against DVC alone; and whatever ends them."""

import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.pipeline.distribute.toy import Toy, end

pytestmark = [
    pytest.mark.stage,
    pytest.mark.skipif(sys.platform != "linux", reason="tried on Linux alone"),
]
pytest.importorskip("parsl")


@pytest.fixture
def toy(tmp_path) -> Toy:
    return Toy(tmp_path / "toy")


def test_the_result_is_that_of_dvc_and_again_nothing_runs(toy, tmp_path):
    serial = Toy(tmp_path / "serial")
    serial.dvc("repro")
    output = toy.distribute()
    assert toy.lock() == serial.lock()
    assert toy.data() == serial.data()
    assert "9 stages done, of which 0 had not changed" in output.replace("of which 1", "of which 0")
    toy.distribute()
    assert [toy.ran(name) for name in ("first", "make-1", "make-2", "make-3")] == [1, 1, 1, 1]
    assert len(toy.events("unchanged")) == 8
    toy.dvc("repro")
    assert toy.ran("make-1") == 1
    assert toy.lock() == serial.lock()


def test_a_change_runs_what_depends_on_it_and_a_larger_sweep_its_new_cells(toy, tmp_path):
    toy.dvc("repro")
    serial = Toy(tmp_path / "serial")
    serial.dvc("repro")
    for each in (toy, serial):
        each.set(numbers=[1, 4, 2, 3])
    serial.dvc("repro")
    toy.distribute()
    assert [toy.ran(f"make-{number}") for number in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert toy.lock() == serial.lock()
    assert toy.data() == serial.data()


def test_what_a_cache_of_runs_holds_does_not_run_again(toy):
    toy.dvc("repro")
    (toy.root / "dvc.lock").unlink()
    for path in (toy.root / "data").rglob("*"):
        if path.is_file():
            path.unlink()
    toy.distribute()
    assert [toy.ran(name) for name in ("first", "make-1")] == [1, 1]
    assert (toy.root / "data/all").read_text() == "1\n2\n3\n"


def test_what_the_cache_has_lost_is_made_again(toy):
    toy.dvc("repro")
    before, lock = toy.data(), toy.lock()
    shutil.rmtree(toy.root / ".dvc/cache")
    shutil.rmtree(toy.root / "data")
    toy.distribute()
    assert toy.data() == before and toy.lock() == lock
    assert toy.ran("make-1") == 2


def test_a_dry_run_says_what_would_run_and_makes_nothing(toy):
    output = toy.distribute("--dry")
    assert "sync: here" in output and "make@2: on all" in output
    assert "8 stages of 9 would run" in output
    assert not (toy.root / "data").exists() and not (toy.root / "dvc.lock").exists()
    toy.dvc("repro")
    assert "make@2: unchanged" in toy.distribute("--dry")


def test_a_failed_stage_fails_alone(toy):
    (toy.root / "fail-2").touch()
    output = toy.distribute(status=1)
    assert "make@2 failed" in output and ".checkpoints/logs/make-2.log" in output
    assert "not run, because they need what failed: all, use@2" in output
    assert set(yaml.safe_load(toy.lock())["stages"]) == {"sync", "first", "make@1", "make@3", "use@1", "use@3"}
    assert (toy.root / "data/used/3").read_text() == "3\n"
    (toy.root / "fail-2").unlink()
    toy.distribute()
    assert [toy.ran(f"make-{number}") for number in (1, 2, 3)] == [1, 2, 1]
    assert (toy.root / "data/all").read_text() == "1\n2\n3\n"


def test_an_edit_meanwhile_changes_nothing_and_is_said(tmp_path):
    toy, serial = Toy(tmp_path / "toy", seconds=1), Toy(tmp_path / "serial", seconds=1)
    process = toy.start("cluster.executors.0.max_workers_per_node=2")
    toy.wait_for("make-1")
    toy.set(factor=3.0)
    (toy.root / "models/input.txt").write_text("another\n")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "edited meanwhile, and not part of this result: params.yaml, models/input.txt" in output
    serial.dvc("repro")
    assert toy.lock() == serial.lock()
    assert toy.data() == serial.data()


def test_a_second_run_of_the_same_repository_is_refused(tmp_path):
    toy = Toy(tmp_path / "toy", seconds=3)
    process = toy.start()
    toy.wait_for("make-1")
    assert "another run is at work on this repository" in toy.distribute(status=1)
    listening = [each for process in toy.processes() for each in process.net_connections("inet") if each.status == "LISTEN"]
    assert listening and {each.laddr.ip.removeprefix("::ffff:") for each in listening} == {"127.0.0.1"}
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_coordinator_nothing_is_left_and_the_next_run_goes_on(tmp_path, number):
    toy = Toy(tmp_path / "toy", seconds=4)
    process = toy.start("cluster.executors.0.max_workers_per_node=2")
    toy.wait_for("make-1")
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert toy.all_gone(), toy.processes()
    serial = Toy(tmp_path / "serial")
    serial.dvc("repro")
    toy.set(seconds=0)
    toy.distribute()
    assert toy.ran("first") == 1
    assert toy.data() == serial.data()
    assert toy.lock() == serial.lock()  # in the same order, too
    assert list((toy.root / ".dvc/tmp/distribute").iterdir()) == []


def victim(toy: Toy, kind: str) -> psutil.Process:
    """A worker's process, that of Parsl's broker, or that of a stage."""
    for process in toy.processes():
        words = process.cmdline()
        if kind == "stage" and words[:1] == ["sleep"]:
            return process
        if kind == "interchange" and "interchange" in " ".join(words) and "guard.py" not in " ".join(words):
            return process
        parent = process.parent()
        if kind == "worker" and any("guard.py" in word for word in words) and words[-2:-1] == ["-c"] and parent is not None:
            return parent
    raise AssertionError(f"no {kind}")


def test_a_lost_worker_s_stage_is_sent_again(tmp_path):
    toy = Toy(tmp_path / "toy", seconds=3)
    process = toy.start("cluster.executors.0.max_workers_per_node=2")
    toy.wait_for("make-1")
    end(victim(toy, "worker"))
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    assert "sent again" in output
    assert [toy.ran(f"make-{each}") for each in (1, 2, 3)] == [1, 1, 1]  # the lost one did not get to its end
    assert (toy.root / "data/all").read_text() == "1\n2\n3\n"


def test_a_killed_stage_fails_and_is_made_by_the_next_run(tmp_path):
    toy = Toy(tmp_path / "toy", seconds=3)
    process = toy.start("cluster.executors.0.max_workers_per_node=2")
    toy.wait_for("make-1")
    end(victim(toy, "stage"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "failed" in output
    toy.set(seconds=0)
    toy.distribute()
    assert (toy.root / "data/all").read_text() == "1\n2\n3\n"


def test_a_broker_that_dies_ends_the_run_in_one_line(tmp_path):
    toy = Toy(tmp_path / "toy", seconds=20)
    process = toy.start("cluster.executors.0.max_workers_per_node=2")
    toy.wait_for("make-1")
    began = time.monotonic()
    end(victim(toy, "interchange"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interchange has ended" in output
    assert time.monotonic() - began < 30
    assert toy.all_gone(), toy.processes()


def test_settings_that_cannot_work_are_refused_before_anything_starts(toy):
    for words, message in (
        (["cluster=moon"], "cluster: given 'moon': there is kubernetes, local, pbs, slurm"),
        (["cluster.executors.0.max_workers_per_node=4000"], "max_workers_per_node: given 4000: this machine has"),
        (["cluster.executors.0.provider.partition=x"], "partition"),
        (["cluster=kubernetes"], "conf/cluster/kubernetes.yaml"),
    ):
        process = toy.start(*words)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1 and message in output, output
    (toy.root / "models/input.txt").unlink()
    assert "models/input.txt: is not there, and first reads it" in toy.distribute(status=1)
    assert not Path(toy.root / "ran-first").exists()


def test_of_two_kinds_of_workers_one_gets_what_computes_and_the_other_all_else(toy):
    settings = yaml.safe_load((toy.root / "conf/cluster/local.yaml").read_text())
    (one,) = settings["executors"]
    executors = [one | {"label": label, "max_workers_per_node": 1} for label in ("cpu", "gpu")]
    (toy.root / "conf/cluster/two.yaml").write_text(yaml.safe_dump(settings | {"executors": executors}))
    toy.distribute("cluster=two")
    executor_of = {event["stage"]: event["executor"] for event in toy.events("sent")}
    assert {executor_of[f"make@{number}"] for number in (1, 2, 3)} == {"gpu"}
    assert {executor_of[name] for name in ("first", "use@1", "all")} == {"cpu"}
    assert (toy.root / "data/all").read_text() == "1\n2\n3\n"
