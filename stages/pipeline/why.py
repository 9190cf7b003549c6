"""Why a stage would run again: which setting, input or code has changed since dvc.lock was written, with old and new values.

python -m stages.pipeline.why train_text2img@0.7-8-0    # or make why STAGE=train_text2img@0.7-8-0
"""

import argparse
import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.pipeline.command import errors_in_one_line
from stages.pipeline.composed_config import FINGERPRINTS
from stages.pipeline.config import read_params
from stages.pipeline.fingerprints import code_digest, fingerprint, import_closure, pattern_order, read_pins
from stages.pipeline.lockfile import LOCK

MISSING = "nothing"


def reasons(name: str, root: Path) -> Iterator[str]:
    """What has changed for a stage, a line each; nothing where it would not run.

    Raises:
        ValueError: there is no such stage.
    """
    from dvc.repo import Repo, lock_repo
    from dvc.utils.serialize import load_yaml

    repo = Repo(str(root))
    try:
        with lock_repo(repo):
            ours = {stage.name: stage for stage in repo.index.stages if stage.path_in_repo == "dvc.yaml"}
            if name not in ours:
                group = name.partition("@")[0]
                near = [each for each in ours if each.partition("@")[0] == group]
                known = near or dict.fromkeys(each.partition("@")[0] for each in ours)
                raise ValueError(f"STAGE: given {name!r}: there is {', '.join(known)}")
            locked = (load_yaml(str(root / LOCK)) if (root / LOCK).is_file() else {}).get("stages", {})
            yield from _compare(name, ours, locked, root)
    finally:
        repo.close()


def _compare(name: str, ours: Mapping[str, Any], locked: Mapping[str, Any], root: Path) -> Iterator[str]:
    stage, entry = ours[name], locked.get(name)
    if entry is None:
        yield f"{LOCK} does not list it: it has not run yet"
        return
    if stage.cmd != entry["cmd"]:
        yield f"its command: {entry['cmd']} → {stage.cmd}"
    params = read_params(root / "params.yaml")
    for setting, old in entry.get("params", {}).get("params.yaml", {}).items():
        yield from differences(setting, old, _at(params, setting))
    for dep in stage.deps:
        if not hasattr(dep, "params"):
            yield from _input(dep, entry, root)
            makers = [maker for maker in _makers(dep.fs_path, ours) if maker != name]
            again = [maker for maker in makers if next(_compare(maker, ours, locked, root), None)]
            path = os.path.relpath(dep.fs_path, root)
            yield from (f"input {path}: {maker} would run before it (make why STAGE={maker})" for maker in again)
    for out in stage.outs:
        if status := out.status():
            yield f"output {os.path.relpath(out.fs_path, root)}: {', '.join(status.values())}"


def _input(dep: Any, entry: Mapping[str, Any], root: Path) -> Iterator[str]:
    path = Path(os.path.relpath(dep.fs_path, root))
    if path.parent == FINGERPRINTS and (root / "stages" / f"{path.name}.py").is_file():
        yield from _code(path.name, entry, root)
    elif status := dep.status():
        yield f"input {path}: {', '.join(status.values())}"


def _makers(path: str, ours: Mapping[str, Any]) -> list[str]:
    """The stages with an output that a path is, or holds."""
    return [
        name
        for name, stage in ours.items()
        if any(out.fs_path == path or out.fs_path.startswith(f"{path}{os.sep}") for out in stage.outs)
    ]


def differences(setting: str, old: Any, new: Any) -> Iterator[str]:
    """The settings in which two values differ, with both."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from differences(f"{setting}.{name}", old.get(name, MISSING), new.get(name, MISSING))
    elif old != new:
        yield f"setting {setting}: {old} → {new}"


def _at(params: Mapping[str, Any], setting: str) -> Any:
    found: Any = params
    for part in setting.split("."):
        found = found.get(part, MISSING) if isinstance(found, Mapping) else MISSING
    return found


def _code(name: str, entry: Mapping[str, Any], root: Path) -> Iterator[str]:
    """Whether the fingerprint of the code is another, and which files git says were changed since dvc.lock was committed."""
    pins = read_pins(root / "requirements.lock")
    content = fingerprint(f"stages.{name}", root, pins) + pattern_order(read_params(root / "params.yaml").get(name))
    new = hashlib.md5(f"{content}\n".encode(), usedforsecurity=False).hexdigest()
    old = next((dep["md5"] for dep in entry.get("deps", ()) if dep["path"] == str(FINGERPRINTS / name)), None)
    if old == new:
        return
    files, _ = import_closure(f"stages.{name}", root)
    changed = [str(file.relative_to(root)) for file in files.values() if _edited(file, root)]
    where = f": {', '.join(sorted(changed))}" if changed else f" ({len(files)} files and the versions of what they import)"
    yield f"its code{where}"


def _edited(file: Path, root: Path) -> bool:
    """Whether a file's code is another than in the commit that changed dvc.lock last."""
    commit = _git(root, "log", "-1", "--format=%H", "--", str(LOCK)) or _git(root, "rev-parse", "HEAD")
    before = _git(root, "show", f"{commit}:{file.relative_to(root).as_posix()}") if commit else None
    if not before:
        return bool(commit)
    old = root / ".dvc/tmp" / f"why-{os.getpid()}.py"
    old.parent.mkdir(parents=True, exist_ok=True)
    try:
        old.write_text(before)
        code_digest.cache_clear()
        return code_digest(old) != code_digest(file)
    finally:
        old.unlink()


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout if words[0] == "show" else done.stdout.strip()


def main(argv: Sequence[str] | None = None) -> None:
    """Print the reasons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", help="as DVC calls it: `dvc stage list --name-only` lists them")
    options = parser.parse_args(argv)
    with errors_in_one_line("why"):
        found = list(dict.fromkeys(reasons(options.stage, Path.cwd())))
        print("\n".join(found) if found else f"{options.stage}: nothing has changed: it would not run")


if __name__ == "__main__":
    main()
