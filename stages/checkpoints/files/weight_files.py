"""Files of weights: which of them a folder in the diffusers layout holds, whole or in shards, and opening any kind."""

from pathlib import Path
from typing import NamedTuple

from stages.checkpoints.files.reading import check_is_file, read_json
from stages.checkpoints.files.tensors import LazyTensor, open_safetensors
from stages.checkpoints.messages import shown

_STEMS = ("diffusion_pytorch_model", "model")
_PICKLED_STEMS = ("diffusion_pytorch_model", "pytorch_model")
# In order of preference; pickles are what repositories of 2022 hold.
WEIGHT_FILES = (
    *(f"{stem}.safetensors{index}" for index in ("", ".index.json") for stem in _STEMS),
    *(f"{stem}.fp16.safetensors" for stem in _STEMS),
    *(f"{stem}.safetensors.index.fp16.json" for stem in _STEMS),
    *(f"{stem}.bin{index}" for index in ("", ".index.json") for stem in _PICKLED_STEMS),
    *(f"{stem}.fp16.bin" for stem in _PICKLED_STEMS),
)
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
FILE_SUFFIXES = (".safetensors", *_PICKLES)


class Weights(NamedTuple):
    """The weights of one component or of a whole model.

    Attributes:
        file: Their file, or the index of their shards.
        shards: The shards, if any.
        tensors: As the files name them.
    """

    file: Path
    shards: tuple[Path, ...]
    tensors: dict[str, LazyTensor]


def find_weights(folder: Path) -> Path | None:
    """The file of weights in a component's folder, or the index of its shards."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def open_weights(file: Path) -> Weights:
    """Open a file of weights, or all shards of an index.

    Raises:
        ValueError: It is of an unknown kind, damaged, or not safe to read.
    """
    check_is_file(file)
    if file.suffix == ".json":
        return _open_shards(file)
    return Weights(file, (), _open_file(file))


def _open_file(file: Path) -> dict[str, LazyTensor]:
    if is_safetensors(file):
        return open_safetensors(file)
    if file.suffix in _PICKLES:
        from stages.checkpoints.files.pickles import open_ckpt

        return open_ckpt(file)
    known = ", ".join(FILE_SUFFIXES)
    raise ValueError(f"{file}: unknown kind of checkpoint; known: {known}, or a diffusers directory")


def is_safetensors(file: Path) -> bool:
    """Whether a file is one of safetensors by its name, or has a pickle's name and begins as they do: a length, and JSON."""
    if file.suffix not in _PICKLES:
        return file.suffix == ".safetensors"
    with file.open("rb") as opened:
        return opened.read(10)[8:] == b'{"'


def _open_shards(index: Path) -> Weights:
    places = _weight_map(index)
    names = sorted(set(places.values()))
    if any(not name.isprintable() or not name or Path(name).name != name for name in names):
        raise ValueError(f"{index}: a shard must lie beside its index, and be named without a folder")
    tensors: dict[str, LazyTensor] = {}
    for name in names:
        if not (index.parent / name).is_file():
            raise ValueError(f"{index.parent / name} is missing, a shard that {index.name} names")
        shard = _open_file(index.parent / name)
        twice = sorted(tensors.keys() & shard.keys())
        if twice:
            raise ValueError(f"{index}: {twice[0]} is there twice, in two shards")
        lost = sorted(key for key, place in places.items() if place == name and key not in shard)
        if lost:
            raise ValueError(f"{index.parent / name}: holds no {shown(lost[0])}, which {index.name} says")
        tensors |= shard
    return Weights(index, tuple(index.parent / name for name in names), tensors)


def _weight_map(index: Path) -> dict[str, str]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index}: no index of shards: weight_map is not a map of keys to files")
    return places
