"""The committed settings, with what a test changes in them."""

import copy
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from stages.lora.adapter_config import AdapterConfig
from stages.lora.config import TrainingConfig
from stages.lora.objective import LossConfig, NoiseConfig
from stages.lora.run import Run
from stages.pipeline.compose import group_values
from stages.pipeline.config import HousekeepingConfig

CONF = Path(__file__).parents[2] / "conf"
HOUSEKEEPING = {"checkpointing_steps": 200, "logging_steps": 10}


@cache
def _committed(group: str) -> dict[str, Any]:
    return group_values(group, CONF)


def conf_values(group: str, **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(_committed(group)) | changes


def training_config(**changes: Any) -> TrainingConfig:
    values = conf_values("train_text2img", **changes)
    return TrainingConfig(**{field.name: values[field.name] for field in fields(TrainingConfig)})


def adapter_config(**changes: Any) -> AdapterConfig:
    values = conf_values("train_text2img", **changes)
    return AdapterConfig(**{field.name: values[field.name] for field in fields(AdapterConfig)})


def loss_config(**changes: Any) -> LossConfig:
    values = conf_values("train_text2img", **changes)
    return LossConfig(**{field.name: values[field.name] for field in fields(LossConfig)})


def noise_config(**changes: Any) -> NoiseConfig:
    values = conf_values("train_text2img", **changes)
    return NoiseConfig(**{field.name: values[field.name] for field in fields(NoiseConfig)})


def make_run(model: Path = Path(), **changes: Any) -> Run:
    """A run on the CPU; `changes` of the run itself, of housekeeping, or of the settings."""
    of_run = {field.name for field in fields(Run)} - {"config", "housekeeping"}
    own = {"streams": [], "rank": 2, "seed": 0, "device": torch.device("cpu"), "dtype": torch.float32, "cuda_graphs": True}
    own |= {name: value for name, value in changes.items() if name in of_run}
    housekeeping = HousekeepingConfig(**{name: changes.get(name, value) for name, value in HOUSEKEEPING.items()})
    settings = {name: value for name, value in changes.items() if name not in {*of_run, *HOUSEKEEPING}}
    return Run(model=model, config=training_config(**settings), housekeeping=housekeeping, **own)
