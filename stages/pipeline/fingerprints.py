"""Fingerprints of code: what a stage's result can depend on, without comments, docstrings and formatting."""

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = "stages"

DISTRIBUTIONS = {
    "PIL": "pillow",
    "dicebear": "dicebear-core",
    "yaml": "pyyaml",
    "hydra": "hydra-core",
    "bing_image_downloader": "bing-image-downloader",
    "cv2": "opencv-python-headless",
}
"""Import names that differ from the name of the distribution in the lock file."""

RESULT_NEUTRAL = {"tqdm", "pydantic", "dvc", "omegaconf", "hydra-core", "pyyaml", "psutil", "typing-extensions", "xxhash"}
"""Distributions whose version cannot change what a stage writes."""

PATTERNS = ("rank_pattern", "alpha_pattern")


def fingerprint(module: str, root: Path, pins: dict[str, str]) -> str:
    """sha256 of a module, of every project module that it imports, directly or not, and of the versions of what they import.

    Args:
        module: dotted name, "stages.merge".
        root: the folder that holds the package.
        pins: distribution → version, from the lock file (not from the environment, so that a machine with another build
            of the same versions reruns nothing).
    """
    closure, third_party = import_closure(module, root)
    digest = hashlib.sha256()
    for name in sorted(closure):
        digest.update(f"{name} {code_digest(closure[name])}\n".encode())
    for name in sorted(third_party - RESULT_NEUTRAL):
        if name in pins:
            digest.update(f"{name}=={pins[name]}\n".encode())
    return digest.hexdigest()


def pattern_order(section: Any) -> str:
    """The order of the patterns in a stage's section, of which the first that fits counts: DVC compares them without it."""
    settings = ((name, section.get(name) or {}) for name in PATTERNS) if isinstance(section, Mapping) else ()
    return "".join(f"\n{name}: {', '.join(patterns)}" for name, patterns in settings if len(patterns) > 1)


def import_closure(module: str, root: Path) -> tuple[dict[str, Path], set[str]]:
    """The project modules that `module` reaches by import statements (also inside functions), and the distributions."""
    closure: dict[str, Path] = {}
    third_party: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _file(name, root)
        if file is None or name in closure:
            continue
        closure[name] = file
        waiting.extend(_parents(name))
        for imported in _imports(file):
            if imported.split(".")[0] == PACKAGE:
                waiting.append(imported)
            else:
                top = imported.split(".")[0]
                third_party.add(DISTRIBUTIONS.get(top, top.replace("_", "-")).lower())
    return closure, third_party


@cache
def code_digest(file: Path) -> str:
    """sha256 of the file's syntax tree without docstrings; comments and formatting are not part of the tree."""
    return hashlib.sha256(repr(_shape(ast.parse(file.read_bytes()))).encode()).hexdigest()


def read_pins(lock: Path) -> dict[str, str]:
    """Read `name==version` lines of a pip lock file; names in lower case with hyphens."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", lock.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[._]+", "-", name).lower(): version for name, version in pins}


def _file(name: str, root: Path) -> Path | None:
    path = root.joinpath(*name.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    package = path / "__init__.py"
    return package if package.is_file() else None


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))


@cache
def _imports(file: Path) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"{file}:{node.lineno}: relative imports are not followed; write the full name")
            names.append(node.module)
            names.extend(f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(names)


def _shape(node: Any) -> Any:
    """A syntax tree as nested tuples; empty fields are left out, because Python versions differ in which ones they have."""
    if isinstance(node, list):
        return [_shape(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
    if (
        isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node) is not None
    ):
        fields = [(name, value[1:] if name == "body" else value) for name, value in fields]
    return (type(node).__name__, [(name, _shape(value)) for name, value in fields])
