"""Proof that params.yaml is what conf/ composes to.

Hydra composes conf/ into params.yaml (`dvc exp run` does it by itself, `dvc repro` never does), and two digests travel in
it: of the files of conf/ and of all the composed values. A later edit of either side shows.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.pipeline.config import ParamsError

SECTION = "provenance"


def conf_digest(conf: Path) -> str:
    """sha256 over the names and texts of all YAML files below `conf`."""
    digest = hashlib.sha256()
    for file in sorted(conf.rglob("*.yaml")):
        text = file.read_bytes()
        digest.update(f"{file.relative_to(conf).as_posix()} {len(text)}\n".encode() + text)
    return digest.hexdigest()


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
    if given.get("conf") != conf_digest(conf):
        raise ParamsError(f"params.yaml is stale: {conf}/ has changed since it was composed: {mend}")
    if given.get("values") != values_digest(params):
        raise ParamsError(f"params.yaml was edited by hand: change {conf}/ or use `dvc exp run -S leaf=value`, then {mend}")
