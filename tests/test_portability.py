"""What other systems lack: every module is imported, and two models are merged, in a process without what only Linux has."""

import ast
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import stages
from tests.checkpoints.tiny import WEIGHTS, random_weights, save_diffusers

ROOT = Path(__file__).parents[1]
# What Linux has and macOS (or an older one) has not, by module.
LINUX_ONLY = {
    "fcntl": ("F_SETPIPE_SZ", "F_GETPIPE_SZ", "F_ADD_SEALS", "F_OFD_SETLK"),
    "mmap": ("MAP_POPULATE", "MAP_NORESERVE", "MAP_STACK", "MAP_HUGETLB", "MADV_HUGEPAGE", "MADV_POPULATE_READ"),
    "os": (
        *("sched_getaffinity", "sched_setaffinity", "sched_setscheduler", "preadv", "preadv2", "pwritev", "pwritev2"),
        *("posix_fadvise", "posix_fallocate", "copy_file_range", "splice", "memfd_create", "eventfd", "pipe2", "getrandom"),
        *("O_DIRECT", "O_TMPFILE", "O_PATH", "fdatasync", "getxattr", "setxattr", "unshare", "pidfd_open", "process_cpu_count"),
    ),
    "resource": ("prlimit", "RUSAGE_THREAD"),
    "select": ("epoll",),
    "signal": ("sigwaitinfo", "sigtimedwait", "pidfd_send_signal", "SIGRTMIN"),
    "time": ("CLOCK_BOOTTIME",),
}
C_LIBRARY = ("mallopt", "malloc_trim", "mallinfo2", "prctl", "malloc_usable_size")

# Other libraries find out at their import what there is; so they come first, and the project then finds less.
WITHOUT = f"""
import ctypes, importlib, sys

class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name in {C_LIBRARY!r}:
            raise AttributeError(name)
        return super().__getattr__(name)

def take_away():
    ctypes.CDLL = Library
    for module, names in {LINUX_ONLY!r}.items():
        for name in names:
            if hasattr(importlib.import_module(module), name):
                delattr(importlib.import_module(module), name)
"""
IMPORT_ALL = f"""{WITHOUT}
import accelerate, cv2, datasets, diffusers, pandas, peft, psutil, torch, transformers
take_away()
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
MERGE = f"""{WITHOUT}
import cv2, numpy, pydantic, safetensors, yaml
take_away()
from pathlib import Path
from stages.merge import MergeConfig, stage
from stages.pipeline.config import validate
config = validate("merge", MergeConfig, yaml.safe_load(sys.argv[1]))
stage(config, Path("theta0"), Path("theta1"), Path("theta0/vae"), 0.5, Path("out"))
"""
MEMORY = f"""{WITHOUT}
import psutil, torch
take_away()
from stages.lora.estimates import peak_memory
from stages.pipeline.torch_runtime import keep_freed_memory
keep_freed_memory()
assert peak_memory(torch.device("cpu")) > 2**20
"""


def run(script: str, *arguments: str, folder: Path = ROOT) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.stage
def test_every_module_is_imported():
    found = pkgutil.walk_packages(stages.__path__, "stages.")
    run(IMPORT_ALL, *(module.name for module in found if "plugins" not in module.name and "__main__" not in module.name))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_two_models_are_merged(tmp_path, dtype):
    thetas = [random_weights(seed, dtype=np.dtype(dtype).type) for seed in (0, 1)]
    for name, weights in zip(("theta0", "theta1"), thetas, strict=True):
        save_diffusers(tmp_path / name, weights)
    config = yaml.safe_load((ROOT / "conf" / "merge" / "default.yaml").read_text()) | {"dtype": dtype, "text_encoder": "theta0"}
    run(MERGE, yaml.safe_dump(config), folder=tmp_path)
    text_encoder = load_file(tmp_path / "out" / "text_encoder" / WEIGHTS["text_encoder"])
    assert all(np.array_equal(value, thetas[0]["text_encoder"][key]) for key, value in text_encoder.items()), "it is copied"
    written = load_file(tmp_path / "out" / "unet" / WEIGHTS["unet"])
    for key, value in written.items():
        theta0, theta1 = (theta["unet"][key].astype(np.float32) for theta in thetas)
        assert np.array_equal(value, (np.float32(0.5) * theta0 + np.float32(0.5) * theta1).astype(dtype)), key


@pytest.mark.stage
def test_memory_is_asked_for_and_measured():
    run(MEMORY)


SOURCES = sorted((*(ROOT / "stages").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")))


def test_what_only_linux_has_is_asked_for_with_getattr():
    """In branches that no other test here takes, too."""
    uses = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value.id}.{node.attr}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.attr in LINUX_ONLY.get(node.value.id, ())
    ]
    assert not uses


def test_no_source_reads_what_only_linux_s_kernel_shows():
    named = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith(("/proc", "/sys/", "/dev/shm"))
    ]
    assert not named


def test_no_two_files_differ_in_case_alone():
    names = [
        str(path) for folder in ("benchmarks", "conf", "data/mini", "stages", "tests") for path in (ROOT / folder).rglob("*")
    ]
    assert len({name.lower() for name in names}) == len(names)


@pytest.mark.parametrize("tool", ["sed -E", "\\t", "expand", "grep -P", "sed -i", "readlink -f", "cp -a", "realpath"])
def test_recipes_use_what_every_make_and_shell_has(tool):
    assert tool not in (ROOT / "Makefile").read_text()


def test_the_workflow_of_the_tests_may_read_and_nothing_else():
    """Actions are pinned to commits, and get no secrets."""
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets" not in text
    steps = workflow["jobs"]["tests"]["steps"]
    actions = [step for step in steps if "uses" in step]
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action["uses"]) for action in actions)
    assert not next(action for action in actions if "checkout" in action["uses"])["with"]["persist-credentials"]
    assert steps[-1]["run"].startswith("make test")
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]
    assert f'requires-python = ">={matrix["python"][0]}"' in (ROOT / "pyproject.toml").read_text()
    assert f"Python {matrix['python'][0]} to {matrix['python'][-1]}" in (ROOT / "README.md").read_text()
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos"}
