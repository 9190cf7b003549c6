"""Hydra finds this plugin through `hydra.plugins_path` in .dvc/config: it registers the resolvers that conf/ uses."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stages.pipeline.provenance import SECTION, conf_digest, values_digest

NOTHING = "LICENSE"
"""A file that never changes: what DVC watches where the config names nothing local, since a dependency cannot be left out."""

ROOT = Path(__file__).parents[5]
CONF = ROOT / "conf"


def _values(*, _root_: DictConfig) -> str:
    unresolved: Any = OmegaConf.to_container(_root_, resolve=False)
    del unresolved[SECTION]
    values: Any = OmegaConf.to_container(OmegaConf.create(unresolved), resolve=True)
    return values_digest(values)


def _local(node: DictConfig | None, *leaves: str) -> str:
    """The first of these leaves that holds a local path."""
    found = [OmegaConf.select(node, leaf) for leaf in leaves] if node is not None else []
    return next((str(path) for path in found if path is not None), NOTHING)


def _given(node: DictConfig | None, path: str) -> str:
    return path if node is not None else NOTHING


def _originals(base: DictConfig) -> DictConfig:
    """What each original is read from; theta2 is left out where there is none, so that nothing runs for it."""
    names = [name for name in ("theta0", "theta1", "theta2") if name != "theta2" or base[name] is not None]
    read = {name: {leaf: _local(base[name], f"{leaf}.path") for leaf in ("config", "source")} for name in names}
    return OmegaConf.create({name: {**paths, "neighbour": _neighbour(paths["source"])} for name, paths in read.items()})


def _neighbour(source: str) -> str:
    """The .yaml beside a single file, which says what the model predicts."""
    neighbour = Path(source).with_suffix(".yaml")
    return str(neighbour) if (ROOT / source).is_file() and (ROOT / neighbour).is_file() else NOTHING


OmegaConf.register_new_resolver("given", _given, replace=True)
OmegaConf.register_new_resolver("originals", _originals, replace=True)
OmegaConf.register_new_resolver("local", _local, replace=True)
OmegaConf.register_new_resolver("conf_digest", lambda: conf_digest(CONF), replace=True)
OmegaConf.register_new_resolver("values_digest", _values, replace=True)
