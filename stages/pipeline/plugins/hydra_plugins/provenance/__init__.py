"""Hydra finds this plugin through `hydra.plugins_path` in .dvc/config: it registers the resolvers of the two digests."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stages.pipeline.provenance import SECTION, conf_digest, values_digest

CONF = Path(__file__).parents[5] / "conf"


def _values(*, _root_: DictConfig) -> str:
    unresolved: Any = OmegaConf.to_container(_root_, resolve=False)
    del unresolved[SECTION]
    values: Any = OmegaConf.to_container(OmegaConf.create(unresolved), resolve=True)
    return values_digest(values)


OmegaConf.register_new_resolver("conf_digest", lambda: conf_digest(CONF), replace=True)
OmegaConf.register_new_resolver("values_digest", _values, replace=True)
