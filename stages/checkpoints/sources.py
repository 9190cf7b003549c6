"""Finding a checkpoint: on this machine, or at a pinned commit of the Hugging Face hub."""

from pathlib import Path
from typing import Protocol

from stages.checkpoints.tensors import sha256

# What this room reads of a repository in the diffusers layout: no other formats and no safety checker.
_CONFIGS = ("model_index.json", "config.json", "*/config.json", "scheduler/*.json", "tokenizer/*")
_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
_PICKLED_WEIGHTS = (
    "diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.bin",
    "text_encoder/pytorch_model.bin",
)
_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")


class Origin(Protocol):
    """Where something comes from: `path`, or `file` (null: all of it) of `repo` at the commit `revision`."""

    @property
    def path(self) -> Path | None: ...  # noqa: D102
    @property
    def repo(self) -> str | None: ...  # noqa: D102
    @property
    def revision(self) -> str | None: ...  # noqa: D102
    @property
    def file(self) -> str | None: ...  # noqa: D102
    @property
    def sha256(self) -> str | None: ...  # noqa: D102


def locate(origin: Origin, *, weights: bool = True) -> Path:
    """The local file or directory, downloaded if it comes from the hub.

    Args:
        origin: Where it comes from.
        weights: Whether a directory's weights are needed too, or its configs and tokenizer alone.

    Raises:
        OSError: The hub could not be reached, or has no such file at that commit.
        ValueError: The file is not the one whose digest the origin names.
    """
    path = origin.path or _download(origin, weights)
    if origin.sha256 is None:
        return path
    if not path.is_file():
        raise ValueError(f"{path}: a sha256 is given, but this is a directory; set it to null or name one file")
    if sha256(path) != origin.sha256:
        raise ValueError(f"{path}: its sha256 is {sha256(path)}, not {origin.sha256}: another file, or damaged")
    return path


def _download(origin: Origin, weights: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    try:
        if origin.file is not None and origin.file.endswith(_FILE_SUFFIXES):
            return Path(hf_hub_download(str(origin.repo), origin.file, revision=origin.revision))
        return _download_folder(origin, weights)
    except (OSError, ValueError, HTTPError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{origin.repo} at {origin.revision}: not fetched from the hub: {reason}") from error


def _download_folder(origin: Origin, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    folder = f"{origin.file}/" if origin.file else ""

    def fetch(patterns: tuple[str, ...]) -> Path:
        allowed = [folder + pattern for pattern in patterns]
        return Path(snapshot_download(str(origin.repo), revision=origin.revision, allow_patterns=allowed)) / folder

    path = fetch(_CONFIGS + _WEIGHTS if weights else _CONFIGS)
    if weights and not any(path.rglob("*.safetensors")):
        path = fetch(_CONFIGS + _PICKLED_WEIGHTS)
    return path
