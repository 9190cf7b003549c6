"""Configs of the stages that read, merge and write checkpoints: conf/'s defaults, and what a test says instead."""

from pathlib import Path

import yaml

from stages.base import BaseConfig
from stages.checkpoints.merging.config import MergeConfig
from stages.pipeline.config import Source, validate
from stages.vae import VaeConfig

CONF = Path(__file__).parents[2] / "conf"


def conf_defaults(group: str) -> dict:
    """What conf/ says of a stage where no preset says otherwise."""
    return yaml.safe_load((CONF / group / "default.yaml").read_text())


def local(path: Path) -> Source:
    """A file or directory on this machine."""
    return Source(path=path, repo=None, revision=None, file=None, sha256=None)


def base_config(source: Path, config: Path | None = None, dtype: str = "float32", **settings) -> BaseConfig:
    """An experiment with one original, theta0."""
    checkpoint = {"source": local(source), "config": config and local(config)}
    checkpoint |= {"fill": False, "ema": False, "prediction_type": None} | settings
    return validate("base", BaseConfig, {"theta0": checkpoint, "theta1": None, "theta2": None, "dtype": dtype})


def vae_config(source: str, other: Path | None = None, alpha: float | None = None, dtype: str = "float32") -> VaeConfig:
    """The VAE of theta0, of theta1, of both or of another source."""
    values = {"source": source, "alpha": alpha, "other": other and local(other), "dtype": dtype}
    return validate("vae", VaeConfig, values)


def merge_config(**settings) -> MergeConfig:
    """A merge."""
    return validate("merge", MergeConfig, conf_defaults("merge") | settings)
