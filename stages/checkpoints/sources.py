"""Finding a checkpoint: on this machine, or at a pinned commit of the Hugging Face hub."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from stages.checkpoints.files.tensors import sha256
from stages.checkpoints.files.weight_files import FILE_SUFFIXES
from stages.pipeline.config import Source

if TYPE_CHECKING:
    from stages.pipeline.hub.repositories import Layout

# What this room reads of a repository in the diffusers layout: no other formats and no safety checker.
_SMALL = ("model_index.json", "config.json", "*/config.json", "scheduler/*.json", "tokenizer/*")
_STEM = "diffusion_pytorch_model"


class Location(NamedTuple):
    """Where a source was found.

    Attributes:
        path: The local file or directory.
        name: What to call it in a report and in a file's metadata: the hub id with its commit, or the last part of the path.
        notes: What the user should know, one line each.
    """

    path: Path
    name: str
    notes: tuple[str, ...] = ()


def locate(origin: Source, *, weights: bool = True) -> Location:
    """Find a source on this machine, downloading it if it comes from the hub.

    What was downloaded is checked against the digests that the hub gave, because its client only counts bytes.

    Args:
        origin: Where it comes from.
        weights: Whether a directory's weights are needed too, or its configs and tokenizer alone.

    Raises:
        OSError: The hub could not be reached, or has no such file at that commit.
        ValueError: The file is not the one whose digest the origin or the hub names.
    """
    location = Location(origin.path, origin.path.name) if origin.path else _download(origin, weights)
    if origin.sha256 is None:
        return location
    path = location.path
    if not path.is_file():
        raise ValueError(f"{path}: a sha256 is given, but this is a directory; set it to null or name one file")
    if sha256(path) != origin.sha256:
        again = f"; to fetch it again, delete {path.resolve()}" if origin.repo else ""
        raise ValueError(f"{path}: its sha256 is {sha256(path)}, not {origin.sha256}: another file, or damaged{again}")
    return location


def _download(origin: Source, weights: bool) -> Location:
    from stages.pipeline.hub.repositories import fetch_file, fetch_folder

    repo, file = str(origin.repo), origin.file
    if file is not None and file.endswith(FILE_SUFFIXES):
        config_of_training = PurePosixPath(file).with_suffix(".yaml").as_posix()
        path, commit = fetch_file(repo, origin.revision, file, beside=[config_of_training])
    else:
        path, commit = fetch_folder(repo, origin.revision, _layout(weights), file or "")
    name = "/".join(filter(None, (f"{repo}@{commit}", file)))
    note = f"{repo}: {origin.revision} is commit {commit} now: write that into conf as its revision"
    return Location(path, name, (note,) if commit != origin.revision else ())


def _layout(weights: bool) -> "Layout":
    """The files of a model in the diffusers layout, with or without its weights, or of its VAE alone."""
    from stages.pipeline.hub.repositories import Layout

    forms = (
        _form("model", "{}.safetensors", "{}.safetensors.index.json", "{}-*-of-*.safetensors"),
        _form("model", "{}.fp16.safetensors", "{}.safetensors.index.fp16.json", "{}.fp16-*-of-*.safetensors"),
        _form("pytorch_model", "{}.bin", "{}.bin.index.json", "{}-*-of-*.bin"),
    )
    return Layout(_SMALL, forms if weights else ())


def _form(text_encoder: str, *patterns: str) -> dict[str, list[str]]:
    """The patterns of one form of weights for each folder; the text encoder's files have a stem of their own."""
    stems = {"": _STEM, "unet/": _STEM, "vae/": _STEM, "text_encoder/": text_encoder}
    return {folder: [pattern.format(stem) for pattern in patterns] for folder, stem in stems.items()}
