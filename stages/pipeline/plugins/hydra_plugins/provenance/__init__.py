"""Hydra finds this plugin through `hydra.plugins_path` in .dvc/config: it registers the resolvers that conf/ uses."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stages.pipeline.provenance import SECTION, conf_digest, values_digest

NOTHING = "LICENSE"
"""A file that never changes: what DVC watches where the config names nothing local, since a dependency cannot be left out."""

CONF = Path(__file__).parents[5] / "conf"


def _values(*, _root_: DictConfig) -> str:
    unresolved: Any = OmegaConf.to_container(_root_, resolve=False)
    del unresolved[SECTION]
    values: Any = OmegaConf.to_container(OmegaConf.create(unresolved), resolve=True)
    return values_digest(values)


def _local(node: DictConfig | None, *leaves: str) -> str:
    """The first of these leaves that holds a local path."""
    found = [OmegaConf.select(node, leaf) for leaf in leaves] if node is not None else []
    return next((str(path) for path in found if path is not None), NOTHING)


OmegaConf.register_new_resolver("local", _local, replace=True)
OmegaConf.register_new_resolver("conf_digest", lambda: conf_digest(CONF), replace=True)
OmegaConf.register_new_resolver("values_digest", _values, replace=True)
