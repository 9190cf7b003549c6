"""Stages as jobs of a real Slurm of one node, with GPUs that are none."""

import os
import signal
import time

import pytest

from tests.pipeline.distribute import slurm
from tests.pipeline.distribute.toy import Toy

pytest.importorskip("parsl")
pytestmark = [
    pytest.mark.stage,
    pytest.mark.skipif(not slurm.is_there(), reason="takes root, Slurm and munge: apt install slurm-wlm munge"),
]
OURS = (
    "cluster=slurm",
    "cluster.executors.0.address=127.0.0.1",
    "cluster.executors.0.provider.partition=main",
    "cluster.executors.0.provider.gres=gpu:1",
    "cluster.executors.0.provider.cores_per_node=1",
    "cluster.executors.0.provider.init_blocks=2",
    "cluster.executors.0.provider.max_blocks=2",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm.running(tmp_path_factory.mktemp("slurm")) as environment:
        before = dict(os.environ)
        os.environ.update(environment)
        yield environment
        os.environ.clear()
        os.environ.update(before)


def no_jobs_left(environment, seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while slurm.jobs(environment):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def start(toy, *words):
    return toy.start(*OURS, *words)


def test_jobs_make_what_dvc_makes_each_with_a_gpu_of_its_own(cluster, tmp_path):
    toy, serial = Toy(tmp_path / "toy", seconds=2), Toy(tmp_path / "serial", seconds=2)
    output, _ = (process := start(toy)).communicate(timeout=180)
    assert process.returncode == 0, output
    serial.dvc("repro")
    assert toy.lock() == serial.lock()
    assert toy.data() == serial.data()
    assert {event["accelerator"] for event in toy.events("done") if event["stage"].startswith("make@")} == {"0", "1"}
    assert no_jobs_left(cluster)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_job_outlives_the_coordinator(cluster, tmp_path, number):
    toy = Toy(tmp_path / "toy", seconds=30)
    process = start(toy)
    toy.wait_for("make-1", seconds=60)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert no_jobs_left(cluster), slurm.jobs(cluster)
    assert toy.all_gone(), toy.processes()
    toy.set(seconds=0)
    toy.distribute()
    assert toy.ran("first") == 1


def test_a_partition_that_is_not_there_is_said_in_seconds(cluster, tmp_path):
    toy, began = Toy(tmp_path / "toy"), time.monotonic()
    output, _ = (process := start(toy, "cluster.executors.0.provider.partition=moon")).communicate(timeout=60)
    assert process.returncode == 1
    assert "invalid partition" in output.lower(), output
    assert "Traceback" not in output
    assert time.monotonic() - began < 30
