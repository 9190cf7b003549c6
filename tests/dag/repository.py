"""A clone with its own DVC cache, in which commands run as a user would run them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT2IMG, DREAMBOOTH = LORAS = ("text2img-a0.7-r8-s0", "dreambooth-a0.7-r8-s0")
VARIANTS = ("theta0", "a0.7", *LORAS)
ONE_CELL = {f"generate@{TEXT2IMG}", f"embed@{TEXT2IMG}", f"export@{TEXT2IMG}"}
PERSISTS = {"compare"}
"""The stage whose output persists while it is made anew, and that DVC therefore does not take from its cache of runs."""


class Repository:
    """A clone with its own DVC cache, in which commands run as a user would run them."""

    def __init__(self, root: Path):
        self.root = root
        self.env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def git(self, *arguments: str) -> None:
        self.run("git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments)

    def dvc(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "dvc", *arguments, check=check)

    def compose(self, *overrides: str) -> None:
        self.run(sys.executable, "-m", "stages.pipeline.compose", "experiment=smoke", *overrides)

    def repro(self) -> set[str]:
        """Run `dvc repro`; the stages that were executed, `sync` left out."""
        return executed(self.dvc("repro").stdout) - {"sync"}

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))


def executed(output: str) -> set[str]:
    return set(re.findall(r"^Running stage '([^']+)'", output, flags=re.MULTILINE))


def copy_tree(target: Path) -> Repository:
    """Everything that git tracks or would track, as a repository of its own."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if name.startswith(("tests/", "benchmarks/", ".github/")) or name == "dvc.lock" or not (ROOT / name).is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    repository = Repository(target)
    repository.git("init", "-q", ".")
    repository.compose()
    repository.git("add", ".")
    repository.git("commit", "-qm", "all")
    return repository


def drawn(*variants: str) -> set[str]:
    """The stages that draw these variants and embed what they drew."""
    return {f"{verb}@{variant}" for verb in ("generate", "embed") for variant in variants}
