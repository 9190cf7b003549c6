"""A Stable Diffusion model on disk: read from any supported form, written in the diffusers layout."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stages.checkpoints.components import COMPONENTS, Component, named, read_component, read_config
from stages.checkpoints.file_names import WEIGHTS
from stages.checkpoints.files.reading import read_json
from stages.checkpoints.files.weight_files import find_weights, open_weights
from stages.checkpoints.files.writing import NotFiniteError, write_safetensors
from stages.checkpoints.keys.architecture import architecture
from stages.checkpoints.keys.spellings import without_nesting
from stages.checkpoints.messages import shown
from stages.checkpoints.prediction import Prediction, prediction
from stages.checkpoints.reading_config import AS_IT_IS, ReadingConfig
from stages.checkpoints.single_file_parts import read_parts

SCHEDULER = "scheduler/scheduler_config.json"
_PIPELINE = "StableDiffusionPipeline"
_OPTIONAL_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
# Settings that name a machine's folders or the dtype of other weights than those written beside them.
_UNTRUE_SETTINGS = ("_name_or_path", "torch_dtype", "dtype")


@dataclass(frozen=True)
class Model:
    """A whole model.

    Attributes:
        components: By name: unet, vae, text_encoder.
        directory: Diffusers directory that holds model_index.json, scheduler/ and tokenizer/.
        prediction: What the UNet predicts, and who says so.
        filled: Components that come from the directory with the configs.
        absent: config.json of the components that it lacks; see `read_model`'s `partial`.
        tokenizer: Diffusers directory that holds tokenizer/, if it is another than `directory`.
    """

    components: Mapping[str, Component]
    directory: Path
    prediction: Prediction
    filled: frozenset[str] = frozenset()
    absent: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tokenizer: Path | None = None

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: epsilon, v_prediction or sample."""
        return self.prediction.type

    def from_source(self, name: str, config_name: str = "") -> "Model":
        """The same model, with recipes that name the source `name`, and for filled components the source `config_name`."""
        components = {
            part: component.from_source(config_name if part in self.filled else name)
            for part, component in self.components.items()
        }
        return replace(self, components=components)

    def description(self) -> str:
        """What was found, in one line: the architecture, what the UNet predicts and why that is believed, what was filled."""
        unet = self.components["unet"].tensors
        kind = architecture({key: tensor.shape for key, tensor in unet.items()})
        filled = f"; {' and '.join(sorted(self.filled))} from the config directory" if self.filled else ""
        return f"{kind}; {self.prediction}{filled}"


def read_model(path: Path, config: Path | None, reading: ReadingConfig = AS_IT_IS, *, partial: bool = False) -> Model:
    """Read a model.

    Args:
        path: A diffusers directory, or a single file (.safetensors, .ckpt): a whole checkpoint or a part of one.
        config: Diffusers directory whose configs, scheduler and tokenizer belong to a single file; its weights are read only
            where they fill what the file lacks. None for a diffusers directory, which has them itself.
        reading: What to do where there is a choice.
        partial: Whether the checkpoint may lack a VAE or a text encoder: who needs one, refuses then.

    Raises:
        ValueError: The file is damaged, of another architecture than its config says, or not safe to read.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or directory")
    if path.is_dir():
        return _read_directory(path, config, reading, partial)
    if config is None:
        raise ValueError(f"{path}: a single file holds no configs and no tokenizer: name a diffusers directory with them")
    _check_pipeline(config)
    configs = {name: read_config(config / name / "config.json", name) for name in COMPONENTS}
    with named(path):
        weights = open_weights(path)
        found = read_parts(weights, configs, ema=reading.ema)
    said = prediction(reading.prediction_type, path, without_nesting(weights.tensors), config / SCHEDULER)
    return _filled(path, found, Model({}, config, said, absent=configs), config if reading.fill else None, partial)


def _read_directory(path: Path, config: Path | None, reading: ReadingConfig, partial: bool) -> Model:
    if reading.ema:
        raise ValueError(f"{path}: a diffusers directory holds no EMA weights beside the others: set ema to false")
    _check_pipeline(path)
    found = {}
    for name in COMPONENTS:
        if find_weights(path / name) or not (reading.fill or (partial and name != "unet")):
            found[name] = read_component(path / name, name)
    unet = found["unet"].file if "unet" in found else path
    said = prediction(reading.prediction_type, unet, (), path / SCHEDULER)
    homes = {name: path if config is None or (path / name / "config.json").exists() else config for name in COMPONENTS}
    configs = {name: read_config(home / name / "config.json", name) for name, home in homes.items() if name not in found}
    return _filled(path, found, Model({}, path, said, absent=configs), config if reading.fill else None, partial)


def _filled(path: Path, found: Mapping[str, Component], model: Model, source: Path | None, partial: bool) -> Model:
    """The model with the components that were found, and the others from `source`; without it they are absent, if they may.

    `model.absent` has the configs of all that may be absent.
    """
    absent = [name for name in COMPONENTS if name not in found]
    if partial and source is None and "unet" in found:
        return replace(model, components=found, absent={name: model.absent[name] for name in absent})
    if absent and source is None:
        raise ValueError(
            f"{path}: holds no {' and no '.join(absent)}: give a whole checkpoint, or a config directory with these weights "
            "and fill: true"
        )
    filled = {name: read_component(source / name, name) for name in absent} if source else {}
    components = {name: {**found, **filled}[name] for name in COMPONENTS}
    return replace(model, components=components, filled=frozenset(absent), absent={})


def write_model(out: Path, model: Model, dtype: str) -> None:
    """Write a model's components, and what belongs to them beside the weights."""
    for name, component in model.components.items():
        write_component(out / name, name, component, dtype)
    _write_pipeline_files(model, out)


def write_found(out: Path, model: Model, dtype: str) -> dict[str, str]:
    """Write what a checkpoint holds; of a VAE or a text encoder that is absent or not finite, the config alone.

    Returns:
        The components that are left out, and why.

    Raises:
        ValueError: The UNet is not finite, or a weight is larger than `dtype` holds.
    """
    left_out = {}
    for name, config in model.absent.items():
        write_config(out / name, name, config, dtype)
        left_out[name] = "the checkpoint holds none"
    for name, component in model.components.items():
        try:
            write_component(out / name, name, component, dtype)
        except NotFiniteError as error:
            if name == "unet":
                raise
            left_out[name] = str(error)
    _write_pipeline_files(model, out)
    return left_out


def write_component(directory: Path, name: str, component: Component, dtype: str) -> None:
    """Write config.json and the weights in `dtype`, with the recipe in the weights' metadata.

    Raises:
        ValueError: A weight is not finite; the message names the file it comes from and the key.
    """
    write_config(directory, name, component.config, dtype)
    write_safetensors(directory / WEIGHTS[name], component.tensors, dtype, component.recipe)


def write_config(directory: Path, name: str, config: Mapping[str, Any], dtype: str) -> None:
    """Write a component's config.json, for weights in `dtype`."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in config.items() if key not in _UNTRUE_SETTINGS}
    if name == "text_encoder":
        config["dtype"] = dtype  # transformers loads weights in the dtype that the config names
    write_json(directory / "config.json", config)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_pipeline_files(model: Model, out: Path) -> None:
    """Write what belongs to a model beside its weights: model_index.json, scheduler and tokenizer. No safety checker."""
    homes = {"scheduler": model.directory, "tokenizer": model.tokenizer or model.directory}
    index = read_json(model.directory / "model_index.json") | {part: [None, None] for part in _OPTIONAL_PARTS}
    others = read_json(homes["tokenizer"] / "model_index.json")
    index |= {part: others[part] for part in ("tokenizer", "text_encoder") if part in others}
    index = {key: value for key, value in index.items() if key not in _UNTRUE_SETTINGS}
    write_json(out / "model_index.json", index | {"requires_safety_checker": False})
    for folder, home in homes.items():
        (out / folder).mkdir()
        for file in sorted((home / folder).iterdir()):
            if file.is_file() and not file.name.startswith("."):
                shutil.copyfile(file, out / folder / file.name)
    scheduler = read_json(model.directory / SCHEDULER)
    said: dict[str, Any] = {"prediction_type": model.prediction_type}
    if model.prediction.rescale_betas_zero_snr:
        said["rescale_betas_zero_snr"] = True
    if scheduler != scheduler | said:
        write_json(out / SCHEDULER, scheduler | said)


def _check_pipeline(directory: Path) -> None:
    name = read_json(directory / "model_index.json").get("_class_name")
    if name != _PIPELINE:
        raise ValueError(f"{directory / 'model_index.json'}: a {shown(name)}; only {_PIPELINE} (SD1, SD2) can be read")
    for folder in ("scheduler", "tokenizer"):
        if not (directory / folder).is_dir():
            raise ValueError(f"{directory / folder} is missing: not a model in the diffusers layout")
