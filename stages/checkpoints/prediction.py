"""What a UNet predicts, epsilon or v_prediction: the same tensors either way, so somebody has to say it."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stages.checkpoints.tensors import read_metadata

_SPELLINGS = {
    "eps": "epsilon",
    "epsilon": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "sample": "sample",
}
_MARKER = "v_pred"  # an empty tensor that some trainers leave in models with v_prediction


class Prediction(NamedTuple):
    """What a UNet predicts.

    Attributes:
        type: epsilon, v_prediction or sample.
        said_by: Who says so, as the rest of a sentence.
        is_guess: Whether nobody does.
    """

    type: str
    said_by: str
    is_guess: bool = False

    def __str__(self) -> str:
        return f"prediction_type {self.type}{', a guess:' if self.is_guess else ':'} {self.said_by}"


def prediction(stated: str | None, file: Path, keys: Collection[str], scheduler: dict[str, Any]) -> Prediction:
    """What a UNet predicts, from the best witness: the parameters, the file, its neighbour, the scheduler's config.

    Args:
        stated: What the parameters say, if anything.
        file: The UNet's file; the config of the training may lie beside it, under the same name with .yaml.
        keys: Of the file's tensors.
        scheduler: scheduler_config.json of the diffusers directory.

    Raises:
        ValueError: A witness says something that is not known.
    """
    configured = scheduler.get("prediction_type")
    if stated is not None:
        return Prediction(_known(stated, "prediction_type"), "as the parameters say")
    found = _of_file(file, keys) or _of_neighbour(file)
    if found is None and configured is None:
        return Prediction("epsilon", f"neither {file.name} nor scheduler_config.json says; set prediction_type", True)
    if found is None:
        return Prediction(
            _known(configured, "scheduler_config.json"), f"as scheduler_config.json says, and {file.name} does not"
        )
    overruled = f"; scheduler_config.json says {configured} and is overruled" if configured not in (None, found.type) else ""
    return found._replace(said_by=found.said_by + overruled)


def _of_file(file: Path, keys: Collection[str]) -> Prediction | None:
    if file.suffix == ".safetensors":
        value = read_metadata(file).get("modelspec.prediction_type")
        if value is not None:
            return Prediction(_known(value, f"modelspec.prediction_type of {file}"), f"as the metadata of {file.name} say")
    return Prediction("v_prediction", f"as {file.name} says with the key {_MARKER}") if _MARKER in keys else None


def _of_neighbour(file: Path) -> Prediction | None:
    """CompVis' and Stability's configs: model.params.parameterization, "eps" where it is left out."""
    neighbour = file.with_suffix(".yaml")
    if not neighbour.is_file():
        return None
    try:
        params = yaml.safe_load(neighbour.read_text())["model"]["params"]
        value = params.get("parameterization", "eps")
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{neighbour}: no config of a model (model.params): {' '.join(str(error).split())}") from error
    return Prediction(_known(value, str(neighbour)), f"as {neighbour.name} beside {file.name} says")


def _known(value: object, witness: str) -> str:
    if value not in _SPELLINGS:
        raise ValueError(f"{witness}: given {value!r}: epsilon or v_prediction")
    return _SPELLINGS[str(value)]
