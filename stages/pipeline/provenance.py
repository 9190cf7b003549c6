"""Proof that params.yaml is what conf/ composes to.

Hydra composes conf/ into params.yaml (`dvc exp run` does it by itself, `dvc repro` never does), and two digests travel in
it: of the files of conf/ and of all the composed values. A later edit of either side shows.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.pipeline.config import YAML_LOADER, ParamsError

SECTION = "provenance"
CLUSTER = "cluster"


def conf_digest(conf: Path, preset: str) -> str:
    """sha256 over the names and the values of the YAML files below `conf`; comments and layout are not part of it.

    Nor is conf/cluster: where stages run cannot change what they make.

    Args:
        conf: the folder.
        preset: the experiment's name; of conf/experiment its file counts, and those that it inherits from. All of them count
            where there is no file of that name.
    """
    presets = conf / "experiment"
    used = _inherited(presets, preset)
    digest = hashlib.sha256()
    for file in sorted(conf.rglob("*.yaml")):
        if (used and file.is_relative_to(presets) and file not in used) or file.is_relative_to(conf / CLUSTER):
            continue
        values = json.dumps(_read(file), default=str)
        digest.update(f"{file.relative_to(conf).as_posix()} {values}\n".encode())
    return digest.hexdigest()


def _inherited(presets: Path, preset: str) -> set[Path]:
    """The file of a preset and those that its defaults name, directly or not; nothing where there is none."""
    found: set[Path] = set()
    waiting = [preset]
    while waiting:
        file = presets / f"{waiting.pop()}.yaml"
        if file.is_file() and file not in found:
            found.add(file)
            values = _read(file)
            defaults = values.get("defaults") if isinstance(values, dict) else None
            waiting += [name for name in defaults or () if isinstance(name, str)]
    return found


def _read(file: Path) -> Any:
    """The values of a YAML file; its text where it is none, which Hydra then refuses."""
    text = file.read_text(encoding="utf-8")
    try:
        return yaml.load(text, YAML_LOADER)
    except yaml.YAMLError:
        return text


def values_digest(params: Mapping[str, Any]) -> str:
    """sha256 over all composed values but the digests themselves, in their order: of several patterns the first counts."""
    values = {section: value for section, value in params.items() if section != SECTION}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def check(params: Mapping[str, Any], conf: Path) -> None:
    """Refuse parameters that conf/ does not compose to.

    Raises:
        ParamsError: it names what was edited and the command that mends it.
    """
    given = params.get(SECTION) or {}
    mend = f"run `python -m stages.pipeline.compose experiment={params.get('name', 'mini')}` (or `make params`)"
    if given.get("conf") != conf_digest(conf, str(params.get("name"))):
        raise ParamsError(f"params.yaml is stale: {conf}/ has changed since it was composed: {mend}")
    if given.get("values") != values_digest(params):
        raise ParamsError(f"params.yaml was edited by hand: change {conf}/ or use `dvc exp run -S setting=value`, then {mend}")
