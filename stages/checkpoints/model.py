"""A Stable Diffusion model on disk: read from any supported form, written in the diffusers layout."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.checkpoints.conformance import conform
from stages.checkpoints.dialects import architecture, normalise_diffusers, normalise_ldm, normalise_vae_file
from stages.checkpoints.key_maps import TensorSpec, component_specs, from_ldm
from stages.checkpoints.tensors import LazyTensor, LazyTensors, Recipe, open_safetensors, read_recipe, sha256, write_safetensors

COMPONENTS = ("unet", "vae", "text_encoder")
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
# In order of preference; the last two are what repositories of 2022 hold.
_WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_PIPELINE = "StableDiffusionPipeline"
_OPTIONAL_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
# Leaves that name a machine's folders or the dtype of other weights than those written beside them.
_UNTRUE_LEAVES = ("_name_or_path", "torch_dtype", "dtype")


@dataclass(frozen=True)
class Component:
    """The UNet, the VAE or the text encoder of a model.

    Attributes:
        config: Its config.json.
        tensors: Its weights, under the names and in the shapes of `key_maps.component_specs`.
        file: The file they come from.
        recipe: What they were made of, for the metadata of the files they are written to.
    """

    config: Mapping[str, Any]
    tensors: LazyTensors
    file: Path
    recipe: Recipe

    def from_source(self, name: str) -> "Component":
        """The same component, known from now on as part of the source `name` with the digest of its file."""
        return replace(self, recipe={"source": name, "sha256": sha256(self.file)})


@dataclass(frozen=True)
class Model:
    """A whole model.

    Attributes:
        components: By name: unet, vae, text_encoder.
        directory: Diffusers directory that holds model_index.json, scheduler/ and tokenizer/.
    """

    components: Mapping[str, Component]
    directory: Path

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: epsilon, v_prediction or sample."""
        return read_json(self.directory / "scheduler" / "scheduler_config.json").get("prediction_type", "epsilon")

    def from_source(self, name: str) -> "Model":
        """The same model, known from now on as the source `name`."""
        return replace(self, components={part: component.from_source(name) for part, component in self.components.items()})


def read_model(path: Path, config: Path | None) -> Model:
    """Read a model.

    Args:
        path: A diffusers directory, or a single file in the LDM layout (.safetensors, .ckpt).
        config: Diffusers directory whose configs, scheduler and tokenizer belong to a single file; its weights are not read.

    Raises:
        ValueError: The file is damaged, of another architecture than its config says, or not safe to read.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or directory")
    if path.is_dir():
        _check_pipeline(path)
        return Model({name: read_component(path / name, name) for name in COMPONENTS}, path)
    if config is None:
        raise ValueError(f"{path}: a single file holds no configs and no tokenizer: name a diffusers directory with them")
    _check_pipeline(config)
    return Model(_read_single_file(path, config), config)


def read_component(directory: Path, component: str) -> Component:
    """Read one component in the diffusers layout."""
    config = _read_config(directory / "config.json", component)
    file = next((directory / name for name in _WEIGHT_FILES if (directory / name).is_file()), None)
    if file is None:
        raise ValueError(f"{directory}: no weights; looked for {', '.join(_WEIGHT_FILES)}")
    with _named(file):
        tensors = normalise_diffusers(component, open_weights(file))
        return Component(config, conform(tensors, _specs(component, config), "diffusers"), file, read_recipe(file))


def read_vae(path: Path, config: Path) -> Component:
    """Read a VAE alone.

    Args:
        path: Diffusers directory of a VAE or of a whole model, or a single file in the LDM layout with or without prefix.
        config: Directory of a VAE in the diffusers layout, whose config.json belongs to a single file.
    """
    if path.is_dir():
        return read_component(path / "vae" if (path / "vae").is_dir() else path, "vae")
    values = _read_config(config / "config.json", "vae")
    with _named(path):
        tensors = normalise_vae_file(open_weights(path))
        specs = _specs("vae", values)
        return Component(values, from_ldm(conform(tensors, specs, "ldm"), specs), path, {})


def check_latents(vae: Component, unet: Path) -> None:
    """Refuse a VAE whose latents the UNet in the directory `unet` does not draw."""
    given = vae.config.get("latent_channels", 4)
    taken = _read_config(unet / "config.json", "unet").get("out_channels", 4)
    if given != taken:
        raise ValueError(f"{vae.file}: its images have {given} latent channels, and the UNet takes {taken}")


def open_weights(file: Path) -> dict[str, LazyTensor]:
    """Open a file of weights by its suffix; only pickles cost an import of torch."""
    if file.suffix == ".safetensors":
        return open_safetensors(file)
    if file.suffix in (".ckpt", ".pt", ".bin"):
        from stages.checkpoints.pickles import open_ckpt

        return open_ckpt(file)
    raise ValueError(f"{file}: unknown kind of checkpoint; known: .safetensors, .ckpt, .pt, .bin, or a diffusers directory")


def write_model(out: Path, model: Model, dtype: str) -> None:
    """Write a model's components, and what belongs to them beside the weights."""
    for name, component in model.components.items():
        write_component(out / name, name, component, dtype)
    _write_pipeline_files(model.directory, out)


def write_component(directory: Path, name: str, component: Component, dtype: str) -> None:
    """Write config.json and the weights in `dtype`, with the recipe in the weights' metadata.

    Raises:
        ValueError: A weight is not finite; the message names the file it comes from and the key.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = {leaf: value for leaf, value in component.config.items() if leaf not in _UNTRUE_LEAVES}
    if name == "text_encoder":
        config["dtype"] = dtype  # transformers loads weights in the dtype that the config names
    write_json(directory / "config.json", config)
    with _named(component.file):
        write_safetensors(directory / WEIGHTS[name], component.tensors, dtype, component.recipe)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; `ValueError` if the file holds none."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: not a model in the diffusers layout") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _write_pipeline_files(source: Path, out: Path) -> None:
    """Copy what belongs to a model beside its weights: model_index.json, scheduler and tokenizer. No safety checker."""
    index = read_json(source / "model_index.json") | {part: [None, None] for part in _OPTIONAL_PARTS}
    index = {leaf: value for leaf, value in index.items() if leaf not in _UNTRUE_LEAVES}
    write_json(out / "model_index.json", index | {"requires_safety_checker": False})
    for folder in ("scheduler", "tokenizer"):
        (out / folder).mkdir()
        for file in sorted((source / folder).iterdir()):
            if file.is_file() and not file.name.startswith("."):
                shutil.copyfile(file, out / folder / file.name)


def _read_single_file(path: Path, config: Path) -> dict[str, Component]:
    configs = {name: _read_config(config / name / "config.json", name) for name in COMPONENTS}
    specs = {name: _specs(name, values) for name, values in configs.items()}
    with _named(path):
        tensors = normalise_ldm(open_weights(path))
        _check_whole(tensors, specs)
        _check_architecture(tensors, specs["unet"], config)
        tensors = conform(tensors, [spec for name in COMPONENTS for spec in specs[name]], "ldm")
    return {name: Component(configs[name], from_ldm(tensors, specs[name]), path, {}) for name in COMPONENTS}


def _check_whole(tensors: LazyTensors, specs: Mapping[str, list[TensorSpec]]) -> None:
    absent = [name for name, entries in specs.items() if not any(spec.ldm_name in tensors for spec in entries)]
    if absent:
        raise ValueError(f"holds no {' and no '.join(absent)}: a whole checkpoint in the LDM layout is needed")


def _check_architecture(tensors: LazyTensors, specs: list[TensorSpec], config: Path) -> None:
    """Say in one word what a hundred wrong shapes would mean."""
    found = architecture({key: tensor.shape for key, tensor in tensors.items()})
    described = architecture({spec.name: spec.shape for spec in specs})
    if found.context_width and found != described:
        raise ValueError(f"an {found} checkpoint, but {config} describes {described}: name the configs that belong to it")


def _check_pipeline(directory: Path) -> None:
    name = read_json(directory / "model_index.json").get("_class_name")
    if name != _PIPELINE:
        raise ValueError(f"{directory / 'model_index.json'}: a {name}; only {_PIPELINE} (SD1, SD2) can be read")


def _read_config(path: Path, component: str) -> dict[str, Any]:
    config = read_json(path)
    name = _CLASSES.get(component)
    if name and config.get("_class_name", name) != name:
        raise ValueError(f"{path}: a {config['_class_name']}, not a {name}")
    return config


def _specs(component: str, config: Mapping[str, Any]) -> list[TensorSpec]:
    try:
        return component_specs(component, config)
    except KeyError as error:
        raise ValueError(f"{component}/config.json: {error.args[0]} is missing") from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before a complaint about its content."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(path)) else f"{path}: {message}") from error
