"""A small pipeline of DVC whose stages sleep, note that they ran, and fail when told; run serially and on workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[3]
PIPELINE = """
stages:
  sync:
    cmd: mkdir -p data/code && echo code > data/code/make
    params: [code]
    outs: [{data/code: {cache: false}}]
  first:
    cmd: mkdir -p data && tr a-z A-Z < models/input.txt > data/first && echo ran >> $DVC_ROOT/ran-first
    deps: [models/input.txt, data/code/make]
    outs: [data/first]
  make:
    matrix: {number: "${numbers}"}
    cmd: >-
      echo step ${item.number} && sleep ${seconds} && echo ran >> $DVC_ROOT/ran-make-${item.number}
      && test ! -e $DVC_ROOT/fail-${item.number} && mkdir -p data/made/${item.number}
      && cat data/first > data/made/${item.number}/a.txt && echo ${item.number} > data/made/${item.number}/b.txt
    deps: [data/first]
    params: [factor, runtime]
    outs: ["data/made/${item.number}"]
  use:
    matrix: {number: "${numbers}"}
    cmd: mkdir -p data/used && cat data/made/${item.number}/b.txt > data/used/${item.number}
    deps: ["data/made/${item.number}"]
    outs: ["data/used/${item.number}"]
  all:
    cmd: cat data/used/* > data/all
    deps: [data/used, data/made]
    params: [factor]
    outs: [data/all]
"""
PARAMS: dict[str, Any] = {
    "code": 1,
    "factor": 1.0e-08,
    "numbers": [1, 2, 3],
    "seconds": 0,
    "runtime": {"device": "cpu", "threads": 1},
}


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}


class Toy:
    """A repository in a folder."""

    def __init__(self, root: Path, **params: Any) -> None:
        self.root = root
        (root / "models").mkdir(parents=True)
        (root / "models/input.txt").write_text("of a user's own\n")
        (root / "dvc.yaml").write_text(PIPELINE)
        shutil.copytree(ROOT / "conf/cluster", root / "conf/cluster")
        self.set(**PARAMS | params)
        self.dvc("init", "--no-scm", "-q")

    def add_remote(self) -> None:
        """A remote of DVC beside the repository, called storage, and the code, which workers do not have then."""
        self.dvc("remote", "add", "--local", "storage", "../storage")
        shutil.copytree(ROOT / "stages", self.root / "stages", ignore=shutil.ignore_patterns("__pycache__"))

    def set(self, **params: Any) -> None:
        path = self.root / "params.yaml"
        values = yaml.safe_load(path.read_text()) if path.is_file() else {}
        path.write_text(yaml.safe_dump(values | params, sort_keys=False))

    def dvc(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *words], cwd=self.root, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, *words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "stages.pipeline.distribute", *words]
        own = environment() | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=self.root, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def distribute(self, *words: str, status: int = 0) -> str:
        process = self.start("cluster.executors.0.max_workers_per_node=2", *words)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == status, output
        return output

    def ran(self, name: str) -> int:
        path = self.root / f"ran-{name}"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def data(self) -> dict[str, str]:
        folder = self.root / "data"
        return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}

    def lock(self) -> str:
        return (self.root / "dvc.lock").read_text()

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.root / ".checkpoints/distribute.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def wait_for(self, name: str, seconds: float = 30) -> None:
        """Until a stage has begun."""
        deadline = time.monotonic() + seconds
        log = self.root / ".checkpoints/logs" / f"{name}.log"
        while not (log.is_file() and "step" in log.read_text()):
            assert time.monotonic() < deadline, "it did not begin"
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """All that still run in this repository."""
        found = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                if str(self.root) in words or process.cwd().startswith(str(self.root)):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def all_gone(self, seconds: float = 15) -> bool:
        deadline = time.monotonic() + seconds
        while self.processes():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


def end(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)
