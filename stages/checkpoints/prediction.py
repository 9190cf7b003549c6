"""What a UNet predicts, epsilon or v_prediction. Its tensors do not show it, so something else has to say it.

A single file says it by markers, empty tensors that trainers leave and other programs look for, and by its metadata; what is
written here is what is read here. Whether the noise schedule was rescaled to end in noise alone (Lin et al. 2023,
arXiv:2305.08891, section 3.1) is said in the same places.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stages.checkpoints.files.reading import read_json, read_text, refuse_stand_in
from stages.checkpoints.files.tensors import read_metadata
from stages.checkpoints.messages import shown

_SPELLINGS = {
    "eps": "epsilon",
    "epsilon": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "sample": "sample",
}
_IN_METADATA = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}  # as Stability's ModelSpec spells them
_METADATA_KEY = "modelspec.prediction_type"
_V_MARKER = "v_pred"
_ZERO_SNR_MARKER = "ztsnr"
_MOST_YAML = 2**16  # bytes; CompVis' configs have 2,000, and PyYAML reads 100,000 in a second


class Prediction(NamedTuple):
    """What a UNet predicts.

    Attributes:
        type: epsilon, v_prediction or sample.
        said_by: Who says so, as the rest of a sentence.
        is_guess: Whether nobody does.
        rescale_betas_zero_snr: Whether its noise schedule ends in noise alone.
    """

    type: str
    said_by: str
    is_guess: bool = False
    rescale_betas_zero_snr: bool = False

    def __str__(self) -> str:
        schedule = ", zero terminal SNR" if self.rescale_betas_zero_snr else ""
        return f"prediction_type {self.type}{schedule}{', a guess:' if self.is_guess else ':'} {self.said_by}"

    def markers(self) -> list[str]:
        """The keys by which a single file says it."""
        return [_V_MARKER] * (self.type == "v_prediction") + [_ZERO_SNR_MARKER] * self.rescale_betas_zero_snr

    def metadata(self) -> dict[str, str]:
        """The metadata by which a single file says it; none for a guess."""
        return {} if self.is_guess else {_METADATA_KEY: _IN_METADATA[self.type]}


def prediction(stated: str | None, file: Path, keys: Collection[str], scheduler: Path) -> Prediction:
    """What a UNet predicts, as the first that says it has it: parameters, file, the .yaml beside it, scheduler's config.

    Args:
        stated: What the parameters say, if anything.
        file: The UNet's file; the config of the training may lie beside it, under the same name with .yaml.
        keys: Of the file's tensors.
        scheduler: scheduler_config.json of the diffusers directory.

    Raises:
        ValueError: A witness says something that is not known.
    """
    config = read_json(scheduler)
    found = _prediction(stated, file, keys, config, scheduler)
    rescaled = config.get("rescale_betas_zero_snr") or False
    if not isinstance(rescaled, bool):
        raise ValueError(f"{scheduler}: rescale_betas_zero_snr: given {shown(rescaled)}: true or false")
    return found._replace(rescale_betas_zero_snr=rescaled or _ZERO_SNR_MARKER in keys)


def _prediction(stated: str | None, file: Path, keys: Collection[str], config: dict[str, Any], scheduler: Path) -> Prediction:
    configured = config.get("prediction_type")
    if stated is not None:
        return Prediction(_known(stated, "prediction_type"), "as the parameters say")
    found = _of_file(file, keys) or _of_neighbour(file)
    if found is None and configured is None:
        return Prediction("epsilon", f"neither {file.name} nor scheduler_config.json says; set prediction_type", True)
    if found is None:
        said = f"as scheduler_config.json says, and {file.name} does not"
        return Prediction(_known(configured, f"{scheduler}: prediction_type"), said)
    overruled = configured not in (None, found.type)
    more = f"; scheduler_config.json says {shown(configured)} and is overruled" if overruled else ""
    return found._replace(said_by=found.said_by + more)


def _of_file(file: Path, keys: Collection[str]) -> Prediction | None:
    if file.suffix == ".safetensors":
        value = read_metadata(file).get(_METADATA_KEY)
        if value is not None:
            return Prediction(_known(value, f"{file}: {_METADATA_KEY}"), f"as the metadata of {file.name} say")
    return Prediction("v_prediction", f"as {file.name} says with the key {_V_MARKER}") if _V_MARKER in keys else None


def _of_neighbour(file: Path) -> Prediction | None:
    """CompVis' and Stability's configs: model.params.parameterization, "eps" where it is left out."""
    neighbour = file.with_suffix(".yaml")
    if not neighbour.is_file():
        return None
    text = read_text(neighbour, _MOST_YAML)
    try:
        # The plainest loader: what it reads cannot grow, as merged mappings (<<) do.
        params = yaml.load(text, yaml.BaseLoader)["model"]["params"]
        value = params.get("parameterization", "eps")
    except (yaml.YAMLError, TypeError, KeyError, AttributeError, RecursionError) as error:
        refuse_stand_in(neighbour)
        raise ValueError(f"{neighbour}: no config of a model (model.params): {shown(error)}") from error
    if "<<" in params and "parameterization" not in params:
        raise ValueError(f"{neighbour}: model.params is merged of other parts (<<), which is not read: write it out")
    return Prediction(_known(value, str(neighbour)), f"as {neighbour.name} beside {file.name} says")


def _known(value: object, witness: str) -> str:
    if not isinstance(value, str) or value not in _SPELLINGS:
        # A value of .yaml may be shared by itself without end, so only texts are shown.
        given = repr(shown(value)) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
        raise ValueError(f"{witness}: given {given}: epsilon or v_prediction")
    return _SPELLINGS[value]
