"""The UNet, the VAE and the text encoder of a model on disk, each alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.checkpoints.files.digests import weights_digest
from stages.checkpoints.files.reading import read_json
from stages.checkpoints.files.tensors import LazyTensors, Recipe, read_recipe
from stages.checkpoints.files.weight_files import WEIGHT_FILES, Weights, find_weights, open_weights
from stages.checkpoints.keys.architecture import architecture, refuse_other_kinds
from stages.checkpoints.keys.checking import conform
from stages.checkpoints.keys.config_values import check_config
from stages.checkpoints.keys.key_maps import TensorSpec, component_specs, from_ldm
from stages.checkpoints.keys.spellings import is_diffusers, normalise_diffusers, normalise_vae_file, without_nesting
from stages.checkpoints.messages import shown

COMPONENTS = ("unet", "vae", "text_encoder")
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}


@dataclass(frozen=True)
class Component:
    """The UNet, the VAE or the text encoder of a model.

    Attributes:
        config: Its config.json.
        tensors: Its weights, under the names and in the shapes of `key_maps.component_specs`.
        file: The file they come from, or the index of its shards.
        recipe: What they were made of, for the metadata of the files they are written to.
        shards: The files they come from, if there is an index.
    """

    config: Mapping[str, Any]
    tensors: LazyTensors
    file: Path
    recipe: Recipe
    shards: tuple[Path, ...] = ()

    def from_source(self, name: str) -> "Component":
        """The same component, with a recipe that names the source `name` and the sha256 of the component's file."""
        return replace(self, recipe={"source": name, "sha256": self.digest()})

    def digest(self) -> str:
        """The sha256 of its file; of shards, that of what `sha256sum` prints for them in order."""
        return weights_digest(self.file, self.shards)


def read_component(directory: Path, component: str) -> Component:
    """Read one component in the diffusers layout.

    Raises:
        ValueError: It is not there, damaged, not what its config describes, or not safe to read.
    """
    config = read_config(directory / "config.json", component)
    file = find_weights(directory)
    if file is None:
        raise ValueError(f"{directory}: no weights; looked for {', '.join(WEIGHT_FILES[:4])} and others")
    with named(file):
        weights = open_weights(file)
        return diffusers_component(component, config, weights)


def diffusers_component(component: str, config: Mapping[str, Any], weights: Weights) -> Component:
    """A component of weights under the names of the diffusers layout."""
    specs = component_specs(component, config)
    if component == "unet":
        check_architecture(weights.tensors, specs, "its config")
    tensors = conform(normalise_diffusers(component, weights.tensors), specs, "diffusers")
    return Component(config, tensors, weights.file, read_recipe(weights.file), weights.shards)


def read_vae(path: Path, config: Path) -> Component:
    """Read a VAE alone.

    Args:
        path: Diffusers directory of a VAE or of a whole model, or a single file: a VAE in the LDM layout with or without
            prefix, a whole checkpoint, or a VAE's weights in the diffusers layout.
        config: Directory of a VAE in the diffusers layout, whose config.json belongs to a single file.
    """
    if path.is_dir():
        return read_component(path / "vae" if (path / "vae").is_dir() else path, "vae")
    values = read_config(config / "config.json", "vae")
    with named(path):
        weights = open_weights(path)
        if is_diffusers(weights.tensors):
            return diffusers_component("vae", values, weights)
        tensors = normalise_vae_file(without_nesting(weights.tensors))
        specs = component_specs("vae", values)
        if not any(spec.ldm_name in tensors for spec in specs):
            raise ValueError("holds no vae")
        return Component(values, from_ldm(conform(tensors, specs, "ldm"), specs), path, {}, weights.shards)


def check_latents(vae: Component, unet: Path) -> None:
    """Refuse a VAE with another number of latent channels than the UNet in the directory `unet`."""
    given = vae.config.get("latent_channels", 4)
    taken = read_config(unet / "config.json", "unet").get("out_channels", 4)
    if given != taken:
        raise ValueError(f"{vae.file}: its images have {given} latent channels, and the UNet takes {taken}")


def check_architecture(tensors: LazyTensors, specs: list[TensorSpec], config: str) -> None:
    """Refuse weights of another generation than the config's (SD1, SD2, SDXL), instead of listing a hundred wrong shapes."""
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    refuse_other_kinds(shapes)
    found = architecture(shapes)
    described = architecture({spec.name: spec.shape for spec in specs})
    if found.context_width and found != described:
        raise ValueError(f"an {found} checkpoint, but {config} describes {described}: name the configs that belong to it")


def read_config(path: Path, component: str) -> dict[str, Any]:
    """Read a component's config.json; `ValueError` if it is that of another class, or describes what cannot be."""
    config = read_json(path)
    name = _CLASSES.get(component)
    if name and config.get("_class_name", name) != name:
        raise ValueError(f"{path}: a {shown(config['_class_name'])}, not a {name}")
    with named(path):
        check_config(component, config)
    return config


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the file's name before a complaint about its content."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(path)) else f"{path}: {message}") from error
