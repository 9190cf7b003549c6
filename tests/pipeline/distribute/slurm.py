"""A Slurm of one node on this machine, with two GPUs that are none; for root, where Slurm and munge are installed."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort={first}
SlurmdPort={second}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
GRES = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"


def is_there() -> bool:
    return os.geteuid() == 0 and all(_program(name) for name in PROGRAMS)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def running(folder: Path) -> Iterator[Mapping[str, str]]:
    """The environment in which its commands find it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host, cores = socket.gethostname().split(".")[0], os.cpu_count() or 1
    ports = {"first": _free_port(), "second": _free_port()}
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, cores=cores, **ports))
    (folder / "gres.conf").write_text(GRES)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munge = Path("/run/munge/munge.socket.2").exists()
    if not munge:
        subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "-m", "755", "/run/munge"], check=True)
        subprocess.run(["runuser", "-u", "munge", "--", str(_program("munged"))], check=True)
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    commands = ([str(_program("slurmctld")), "-D", "-c"], [str(_program("slurmd")), "-D"])
    started = [subprocess.Popen(command, env=environment, **quiet) for command in commands]
    try:
        _wait_until_idle(environment, folder)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=30)
        if not munge:
            subprocess.run(["pkill", "-u", "munge", "-x", "munged"], check=False)


def _wait_until_idle(environment: Mapping[str, str], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        asked = subprocess.run(["sinfo", "-h", "-o", "%t"], env=dict(environment), capture_output=True, text=True, check=False)
        if asked.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    raise AssertionError((folder / "slurmctld.log").read_text()[-2000:] + (folder / "slurmd.log").read_text()[-2000:])


def jobs(environment: Mapping[str, str]) -> list[str]:
    """The states of all jobs that are not at their end."""
    asked = subprocess.run(["squeue", "-h", "-o", "%T"], env=dict(environment), capture_output=True, text=True, check=True)
    return asked.stdout.split()
