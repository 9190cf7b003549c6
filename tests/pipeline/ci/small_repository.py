"""A Git and DVC repository whose only stage copies a report from a folder that Git tracks: small enough to be run often."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
COMPARE = {
    "cmd": "python take_report.py",
    "deps": ["made", "take_report.py"],
    "outs": [{"data/report": {"persist": True}}],
}
COPY = "import shutil\nshutil.rmtree('data/report', ignore_errors=True)\nshutil.copytree('made', 'data/report')\n"
SWEEP = {
    "alpha": [0.7],
    "rank": [4],
    "dreambooth_rank": [4],
    "vectors": [],
    "seed": [0],
    "lora_scale": [1.0],
    "kept_steps": {"text2img": [], "dreambooth": [], "textual_inversion": []},
    "bases": ["theta0", "theta1"],
}


class SmallRepository:
    """A clone in which commands run as a user would run them; the metrics and plots are declared as in the real dvc.yaml."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str) -> str:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def git(self, *arguments: str) -> str:
        return self.run("git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments)

    def dvc(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "all")


def make_repository(root: Path, report: Path) -> SmallRepository:
    """A repository with this report, run once, committed, and pushed to a remote beside it."""
    real = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    sections = {"stages": {"compare": COMPARE}, "metrics": real["metrics"], "plots": real["plots"]}
    root.mkdir()
    repository = SmallRepository(root)
    repository.git("init", "-q", ".")
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    shutil.copyfile(ROOT / ".gitignore", root / ".gitignore")
    (root / "data/mini").mkdir(parents=True)
    for name in ("data/mini/dvc.yaml", "data/mini/metrics.json"):
        shutil.copyfile(ROOT / name, root / name)
    shutil.copytree(report, root / "made")
    (root / "take_report.py").write_text(COPY)
    (root / "dvc.yaml").write_text(yaml.safe_dump(sections))
    (root / "params.yaml").write_text(yaml.safe_dump({"sweep": SWEEP}))
    repository.dvc("remote", "add", "--default", "beside", str(root.with_name("remote")))
    repository.dvc("repro", "--quiet")
    repository.commit()
    repository.dvc("push", "--quiet")
    return repository
