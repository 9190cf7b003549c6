"""The committed settings, with what a test changes in them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from stages.lora.config import AdapterConfig, TrainingConfig

CONF = Path(__file__).parents[2] / "conf"


def conf_values(group: str, **changes: Any) -> dict[str, Any]:
    return yaml.safe_load((CONF / group / "default.yaml").read_text()) | changes


def training_config(**changes: Any) -> TrainingConfig:
    values = conf_values("train_text2img", **changes)
    del values["caption_dropout"]
    return TrainingConfig(**values)


def adapter_config(**changes: Any) -> AdapterConfig:
    values = conf_values("train_text2img", **changes)
    return AdapterConfig(**{field.name: values[field.name] for field in fields(AdapterConfig)})
