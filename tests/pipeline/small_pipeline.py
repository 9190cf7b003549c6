"""A repository with a small pipeline, run by DVC itself."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]

PIPELINE = """
stages:
  generate:
    matrix: {alpha: "${sweep.alpha}"}
    cmd: mkdir -p data/images/a${item.alpha} && echo ${item.alpha} > data/images/a${item.alpha}/p0.png
    deps: [input.txt]
    outs: ["data/images/a${item.alpha}"]
  embed:
    matrix: {alpha: "${sweep.alpha}"}
    cmd: mkdir -p data/embeddings && cat data/images/a${item.alpha}/p0.png > data/embeddings/a${item.alpha}.safetensors
    deps: ["data/images/a${item.alpha}"]
    outs: ["data/embeddings/a${item.alpha}.safetensors"]
  own:
    cmd: mkdir -p data/images/own && echo own > data/images/own/picture.png
    deps: [input.txt]
    outs: [data/images/own]
"""


def run(*command: str, status: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)
    assert status is None or done.returncode == status, done.stdout + done.stderr
    return done


def dvc(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "dvc", *arguments, **options)


def write_params(alphas: list[float]) -> dict[str, Any]:
    params = {"sweep": {"alpha": alphas}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    return params


def make_pipeline() -> None:
    """In the working directory, run with alpha 0.3 and 0.7."""
    dvc("init", "--no-scm", "-q")
    dvc("config", "core.analytics", "false")
    Path("dvc.yaml").write_text(PIPELINE)
    Path("input.txt").write_text("input")
    write_params([0.3, 0.7])
    dvc("repro")
