"""What two runs that give the same report may differ in: the commit, the times, the machine; and all that dvc.lock has noted.

    python -m stages.pipeline.run_record data/report    # writes lineage.html into the report; `make repro` does

No output of a stage holds any of this, so that the same inputs give the same bytes. DVC does not look at lineage.html
(.dvcignore). Each stage that DVC runs notes its time and memory in .checkpoints/runs.jsonl.
"""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.composed_config import FINGERPRINTS
from stages.pipeline.config import PARAMS_FILE, YAML_LOADER
from stages.pipeline.lockfile import LOCK, LockedFile, locked_stages
from stages.pipeline.outputs import checkpoints_folder
from stages.pipeline.timing import read_runs
from stages.pipeline.wording import PROGRAM

PAGE = "lineage.html"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow", "dvc")
WATCHED = ("conf", "data/mini", "dvc.yaml", "params.yaml", "requirements.lock", "stages")
"""What the results follow from, of what is in git."""


def commit() -> dict[str, str]:
    """The commit that is checked out, and whether what the results follow from has changed since; nothing without git."""
    head = _git("rev-parse", "HEAD")
    if not head:
        return {}
    changed = _git("status", "--porcelain", "--", *WATCHED)
    return {
        "Commit": head,
        "Of": _git("log", "-1", "--format=%cI"),
        "Changed since": ", ".join(line[3:] for line in changed.splitlines()) or "nothing",
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.rstrip() if done.returncode == 0 else ""


def facts() -> dict[str, str]:
    """Commit, digests of dvc.lock and params.yaml, machine, versions."""
    digests = {
        f"{path}, sha256": hashlib.sha256(path.read_bytes()).hexdigest() for path in (LOCK, PARAMS_FILE) if path.is_file()
    }
    machine = {"Python": platform.python_version(), "System": platform.platform(), "Processors": str(os.cpu_count())}
    return {**commit(), **digests, **machine, **{name: _version(name) for name in (*PACKAGES, PROGRAM)}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def revisions(params: Mapping[str, Any]) -> dict[str, str]:
    """The commits of the hub that settings name, by the settings."""
    found: dict[str, str] = {}

    def look(value: Any, path: str) -> None:
        if not isinstance(value, Mapping):
            return
        if value.get("repo"):
            found[path] = f"{value['repo']}@{value.get('revision')}"
        for name, inner in value.items():
            look(inner, f"{path}.{name}" if path else str(name))

    look(params, "")
    return found


def inputs(stages: Mapping[str, Mapping[str, list[LockedFile]]]) -> list[LockedFile]:
    """What the stages of dvc.lock read and none of them wrote, fingerprints of code left out."""
    written = {out.path for stage in stages.values() for out in stage["outs"]}
    read = {dep.path: dep for stage in stages.values() for dep in stage["deps"]}
    return [dep for path, dep in sorted(read.items()) if not any(path.is_relative_to(out) for out in written)]


def write_record(report: Path, checkpoints: Path) -> Path:
    """Write lineage.html into a report.

    Raises:
        ValueError: dvc.lock cannot be read.
        FileNotFoundError: there is no report.
    """
    import jinja2

    if not report.is_dir():
        raise FileNotFoundError(f"{report}: no report there; run `dvc repro` first")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    stages, runs = locked_stages(), read_runs(checkpoints)
    params = yaml.load(PARAMS_FILE.read_bytes(), YAML_LOADER)
    codes = {file.name: file.read_text().strip() for file in sorted(FINGERPRINTS.glob("*"))} if FINGERPRINTS.is_dir() else {}
    rows = [
        {"name": name, "run": runs.get(name), "code": codes.get(name.partition("@")[0], ""), "outs": stage["outs"]}
        for name, stage in stages.items()
    ]
    page = environment.get_template("run_record.html.jinja").render(
        facts=facts(), inputs=inputs(stages), revisions=revisions(params), rows=rows
    )
    out = report / PAGE
    out.write_text(page, encoding="utf-8")
    return out


def main(report: Path) -> None:
    """Write the page."""
    with errors_in_one_line("run_record"):
        write_record(report, checkpoints_folder())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
