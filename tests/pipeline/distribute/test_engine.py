"""What is settled before any worker starts."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.pipeline.distribute.engine import core_count, describe_ends, fill_in, gpu_count, label_for, read_cluster
from stages.pipeline.distribute.plan import Cell, descendants, sources_of
from stages.pipeline.distribute.remote import Carried, prepare
from stages.pipeline.provenance import conf_digest

CONF = Path("conf")
CPU = {"device": "cpu", "threads": 2}


def local(workers: int | None = None) -> dict[str, Any]:
    (executor,) = read_cluster(["cluster=local"], CONF)["executors"]
    return executor | {"max_workers_per_node": workers}


@pytest.mark.parametrize(
    ("runtime", "gpus", "cores", "workers", "accelerators"),
    [
        (CPU, 0, 8, 4, []),
        (CPU, 2, 8, 4, []),  # the experiment computes on the CPU
        (CPU, 0, 1, 1, []),  # one is always allowed
        ({"device": "auto", "threads": 2}, 0, 8, 4, []),
        ({"device": "auto", "threads": 2}, 3, 16, 3, ["0", "1", "2"]),
        ({"device": "cuda", "threads": 8}, 4, 16, 2, ["0", "1"]),  # no more than the cores feed
    ],
)
def test_this_machine_gets_as_many_workers_as_there_is_room_for(runtime, gpus, cores, workers, accelerators):
    executor = local()
    fill_in(executor, runtime, gpus, cores)
    assert executor["max_workers_per_node"] == workers
    assert executor["available_accelerators"] == accelerators


def test_fewer_may_be_asked_for_and_more_are_refused():
    executor = local(1)
    fill_in(executor, CPU, 0, 8)
    assert executor["max_workers_per_node"] == 1
    with pytest.raises(ValueError, match="given 5: this machine has 8 cores, and each stage computes with 2 threads"):
        fill_in(local(5), CPU, 0, 8)
    with pytest.raises(ValueError, match="2 GPUs and 16 cores"):
        fill_in(local(3), {"device": "cuda", "threads": 1}, 2, 16)


def test_jobs_of_a_cluster_are_left_as_they_are():
    (executor,) = read_cluster(["cluster=slurm"], CONF)["executors"]
    before = yaml.safe_dump(executor)
    fill_in(executor, CPU, 0, 1)
    assert yaml.safe_dump(executor) == before


def test_settings_of_a_cluster_can_be_overridden_by_their_path():
    words = ["cluster=slurm", "cluster.executors.0.provider.partition=gpu", "cluster.retries=0"]
    cluster = read_cluster(words, CONF)
    assert cluster["executors"][0]["provider"]["partition"] == "gpu" and cluster["retries"] == 0
    with pytest.raises(ValueError, match=r"conf/cluster/slurm\.yaml: .*portition"):
        read_cluster(["cluster=slurm", "cluster.executors.0.provider.portition=gpu"], CONF)
    with pytest.raises(ValueError, match="given 'moon': there is kubernetes, local, pbs, slurm, ssh"):
        read_cluster(["cluster=moon"], CONF)


def test_machines_that_ssh_reaches_are_not_measured_by_this_one():
    words = ["cluster=ssh", "cluster.remote=storage", "cluster.executors.0.hosts=[a,b]", "cluster.executors.0.programs=/bin"]
    (executor,) = read_cluster([*words, "cluster.executors.0.max_workers_per_node=64"], CONF)["executors"]
    fill_in(executor, CPU, 0, 1)
    assert executor["max_workers_per_node"] == 64
    with pytest.raises(ValueError, match=r"ssh\.yaml: Missing mandatory value"):
        read_cluster(["cluster=ssh", "cluster.remote=storage"], CONF)


def test_another_version_of_a_package_is_refused_by_the_worker(tmp_path):
    (tmp_path / ".dvc").mkdir()
    carried = Carried("r", "storage", {"url": "/tmp"}, {}, {"data/x": True, "m.ckpt": False}, {"torch": "1.0", "pyyaml": ""})
    with pytest.raises(ValueError, match=r"has torch [\d.]+ and not 1\.0, .*: install this requirements\.lock there"):
        prepare(tmp_path, carried)
    prepare(tmp_path, replace(carried, versions={"torch": version("torch").partition("+")[0]}))
    assert (tmp_path / "data/x").is_dir() and (tmp_path / "m.ckpt").is_file()


def test_stages_that_compute_go_to_the_gpus_where_there_are_two_kinds_of_workers():
    assert [label_for(["cpu", "gpu"], computes) for computes in (True, False)] == ["gpu", "cpu"]
    assert [label_for(["all"], computes) for computes in (True, False)] == ["all", "all"]


def test_where_stages_run_is_in_no_digest(tmp_path):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "a.yaml").write_text("a: 1")
    before = conf_digest(tmp_path, "mini")
    (tmp_path / "cluster/own.yaml").write_text("retries: 7")
    assert conf_digest(tmp_path, "mini") == before
    (tmp_path / "a.yaml").write_text("a: 2")
    assert conf_digest(tmp_path, "mini") != before


def cell(name: str, *upstream: str, sources: tuple[str, ...] = ()) -> Cell:
    return Cell(name, upstream, tuple(map(Path, sources)), (), False)


def test_what_needs_a_stage_directly_or_not():
    cells = {each.name: each for each in (cell("a"), cell("b", "a"), cell("c", "b"), cell("d"), cell("e", "c", "d"))}
    assert descendants(cells, "b") == {"c", "e"}
    assert descendants(cells, "e") == set()


def test_a_folder_that_is_read_stands_for_what_lies_in_it():
    cells = {"a": cell("a", sources=("stages/report/templates", "stages", "x.ckpt")), "b": cell("b", sources=("x.ckpt",))}
    assert sources_of(cells) == [Path("stages"), Path("x.ckpt")]


def test_gpus_and_cores_are_counted_without_torch(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert gpu_count() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_count() == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: a)'\necho 'GPU 1: another (UUID: b)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpu_count() == 2
    assert core_count() >= 1


@pytest.mark.parametrize(
    ("states", "walltime", "said"),
    [
        (["RUNNING", "TIMEOUT"], "04:00:00", "its wall time (04:00:00) was over"),
        (["TIMEOUT", "CANCELLED", "RUNNING"], "04:00:00", "cancelled"),
        (["RUNNING", "COMPLETED", "SCALED_IN"], "04:00:00", "its wall time (04:00:00) may be over"),
        (["COMPLETED"], "", ""),
        ([], "", ""),
    ],
)
def test_how_the_jobs_of_lost_workers_ended(states, walltime, said):
    assert said in describe_ends(states, walltime) and bool(describe_ends(states, walltime)) == bool(said)
