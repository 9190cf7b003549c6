"""What dvc.lock says: which outputs stages wrote, and their content.

python -m stages.pipeline.lockfile    # refuses a dvc.lock that DVC would refuse, with the cure, and a disk that is full
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.config import YAML_LOADER
from stages.pipeline.dvc_cache import object_path
from stages.pipeline.dvc_command import ask_dvc
from stages.pipeline.outputs import check_room

LOCK = Path("dvc.lock")
PIPELINE = Path("dvc.yaml")


@pydantic_dataclass
class _Entry:
    path: str
    md5: str = ""
    hash: str = ""
    size: int = 0
    nfiles: int = 0


@pydantic_dataclass
class _Stage:
    cmd: str | list[str]
    deps: list[_Entry] = field(default_factory=list)
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    outs: list[_Entry] = field(default_factory=list)


@pydantic_dataclass
class _Lock:
    schema: Literal["2.0"]
    stages: dict[str, _Stage] = field(default_factory=dict)


@dataclass(frozen=True)
class LockedOut:
    """An output as a stage wrote it last.

    Attributes:
        stage: its name, such as generate_merged@0.7.
        path: relative to the repository.
        md5: of its content, with ".dir" behind it for a folder; "" where dvc.lock has none.
        size: in bytes; 0 where dvc.lock has none.
    """

    stage: str
    path: Path
    md5: str
    size: int = 0


def locked_outs(lock: Path = LOCK) -> list[LockedOut]:
    """All outputs that dvc.lock lists; none where there is no dvc.lock.

    Raises:
        ValueError: it is no such file, or only half of one.
    """
    return [
        LockedOut(name, out.path, out.md5, out.size) for name, stage in locked_stages(lock).items() for out in stage["outs"]
    ]


@dataclass(frozen=True)
class LockedFile:
    """A file or folder that dvc.lock lists: its path, the md5 of its content, its size in bytes."""

    path: Path
    md5: str
    size: int


def locked_stages(lock: Path = LOCK) -> dict[str, dict[str, list[LockedFile]]]:
    """What each stage of dvc.lock read ("deps") and wrote ("outs"); none where there is no dvc.lock.

    Raises:
        ValueError: it is no such file, or only half of one.
    """
    try:
        content = TypeAdapter(_Lock).validate_python(yaml.load(lock.read_bytes(), YAML_LOADER))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{lock} cannot be read ({_reason(error)}): take back the last committed one (`git checkout "
            f"{lock}`), or delete it; then `dvc repro` runs again only what is not in DVC's cache"
        ) from error
    return {
        name: {
            kind: [LockedFile(Path(entry.path), entry.md5, entry.size) for entry in entries]
            for kind, entries in (("deps", stage.deps), ("outs", stage.outs))
        }
        for name, stage in content.stages.items()
    }


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the whole file'}: {first['msg']}"
    return " ".join(str(error).split())[:200]


def content_md5(path: Path) -> str:
    """The md5 of a file or folder, as dvc.lock gives it; "" for what is not there."""
    if path.is_file():
        return file_md5(path)
    if not path.is_dir():
        return ""
    return f"{hashlib.md5(_listing(path), usedforsecurity=False).hexdigest()}.dir"


def cached(out: LockedOut, cache: Path) -> bool:
    """Whether DVC's cache holds the content of an output, all files of it."""
    listing = object_path(cache, out.md5)
    if not out.md5 or not listing.is_file():
        return False
    if not out.md5.endswith(".dir"):
        return True
    return all(object_path(cache, entry["md5"]).is_file() for entry in json.loads(listing.read_bytes()))


def cache_folder() -> Path:
    """Where DVC's cache is: the folder that DVC says, or its default where it does not say."""
    return Path(ask_dvc("cache", "dir") or ".dvc/cache")


def gone_stages(names: set[str], params: Mapping[str, Any], pipeline: Path = PIPELINE) -> set[str]:
    """Those of the stages `names` that the pipeline no longer has; what cannot be told is not among them.

    Args:
        names: such as generate_merged@0.7.
        params: the parameters that dvc.yaml takes values from.
        pipeline: dvc.yaml.
    """
    stages = yaml.load(pipeline.read_bytes(), YAML_LOADER)["stages"]
    gone = set()
    for name in names:
        group, _, key = name.partition("@")
        keys = _keys(stages[group], params) if group in stages else {}
        if keys is not None and key not in keys:
            gone.add(name)
    return gone


def _keys(stage: Mapping[str, Any], params: Mapping[str, Any]) -> set[str] | None:
    """What stands behind the @ in the names of a stage of dvc.yaml; None where that cannot be told."""
    if "matrix" in stage:
        values = [_resolve(value, params) for value in stage["matrix"].values()]
    elif "foreach" in stage:
        values = [_resolve(stage["foreach"], params)]
    else:
        return {""}
    if not all(isinstance(value, list | dict) for value in values):
        return None
    if any(isinstance(item, list | dict | bool) for value in values if isinstance(value, list) for item in value):
        return None
    return {"-".join(map(str, combination)) for combination in itertools.product(*values)}


def _resolve(value: Any, params: Mapping[str, Any]) -> Any:
    """A value of dvc.yaml, `${section.setting}` being looked up; None where that cannot be done."""
    if not isinstance(value, str):
        return value
    found: Any = params
    for part in value.removeprefix("${").removesuffix("}").strip().split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _listing(folder: Path) -> bytes:
    """A folder as DVC lists it: the md5 of each file, sorted by path; what .dvcignore names is not left out here."""
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    return json.dumps([{"md5": file_md5(files[name]), "relpath": name} for name in sorted(files)], sort_keys=True).encode()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def file_md5(path: Path) -> str:
    """The md5 of a file's bytes, by which DVC names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def main() -> None:
    """Refuse what DVC would fail on half-way, with one line and status 1."""
    with errors_in_one_line("pipeline"):
        locked_outs()
        check_room()


if __name__ == "__main__":
    main()
