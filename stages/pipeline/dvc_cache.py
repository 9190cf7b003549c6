"""DVC's cache: its objects, each named by the md5 of its content, and the runs that it remembers with what they made."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.pipeline.config import YAML_LOADER

FILES, RUNS = Path("files/md5"), Path("runs")


@dataclass(frozen=True)
class CachedRun:
    """A run of a stage that the cache remembers, and takes again in place of running it.

    Attributes:
        path: the file of the cache that says so.
        command: that was run.
        outs: what it made: the path and the md5 of each output.
        used: when it was noted or taken last, in seconds since 1970.
    """

    path: Path
    command: str
    outs: Mapping[str, str]
    used: float


def objects(cache: Path) -> Iterator[Path]:
    """The files of all objects."""
    return (path for path in sorted((cache / FILES).glob("??/*")) if path.is_file())


def object_path(cache: Path, md5: str) -> Path:
    """Where the object of a name is."""
    return cache / FILES / md5[:2] / md5[2:]


def object_name(path: Path) -> str:
    """The md5 that an object is named by; that of a folder's listing has ".dir" behind it."""
    return path.parent.name + path.name


def objects_of(cache: Path, md5: str) -> set[str]:
    """The names of all objects that an output consists of: its own and, for a folder, those of its files."""
    listing = object_path(cache, md5)
    if not md5.endswith(".dir") or not listing.is_file():
        return {md5}
    try:
        return {md5, *(entry["md5"] for entry in json.loads(listing.read_bytes()))}
    except (ValueError, KeyError, TypeError):  # damaged
        return {md5}


def runs(cache: Path) -> list[CachedRun]:
    """All runs, the least recently used first; a file that cannot be read is left out."""
    found = []
    for path in (cache / RUNS).glob("*/*/*"):
        try:
            content: Any = yaml.load(path.read_bytes(), YAML_LOADER)
            outs = {out["path"]: out["md5"] for out in content.get("outs", ()) if out.get("md5")}
            command = " ".join(str(content["cmd"]).split())
        except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):
            continue
        used = [object_path(cache, md5).stat().st_atime for md5 in outs.values() if object_path(cache, md5).is_file()]
        found.append(CachedRun(path, command, outs, max([path.stat().st_mtime, *used])))
    return sorted(found, key=lambda run: (run.used, str(run.path)))
