"""Finding a checkpoint: on this machine, or at a pinned commit of the Hugging Face hub."""

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from stages.checkpoints.tensors import sha256
from stages.checkpoints.weight_files import find_weights

# What this room reads of a repository in the diffusers layout: no other formats and no safety checker.
_CONFIGS = ("model_index.json", "config.json", "*/config.json", "scheduler/*.json", "tokenizer/*")
_FOLDERS = ("", "unet/", "vae/", "text_encoder/")
# Forms of weights in order of preference; a form is fetched only for the folders that have none before it.
_FORMS = (
    ("{}.safetensors", "{}.safetensors.index.json", "{}-*-of-*.safetensors"),
    ("{}.fp16.safetensors", "{}.safetensors.index.fp16.json", "{}.fp16-*-of-*.safetensors"),
    ("{}.bin", "{}.bin.index.json", "{}-*-of-*.bin"),
)
_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_SHA256_DIGITS, _GIT_DIGITS = 64, 40


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


def locate(origin: Origin, *, weights: bool = True) -> Location:
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


def _download(origin: Origin, weights: bool) -> Location:
    from huggingface_hub.errors import HTTPError

    try:
        is_file = origin.file is not None and origin.file.endswith(_FILE_SUFFIXES)
        path, root = _download_file(origin) if is_file else _download_folder(origin, weights)
    except (OSError, ValueError, HTTPError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{origin.repo} at {origin.revision}: not fetched from the hub: {reason}") from error
    if weights:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                _check_digest(file)
    commit = root.name  # the client keeps a repository's files under snapshots/<commit>
    name = "/".join(filter(None, (f"{origin.repo}@{commit}", origin.file)))
    note = f"{origin.repo}: {origin.revision} is commit {commit} now: write that into conf as its revision"
    return Location(path, name, (note,) if commit != origin.revision else ())


def _check_digest(path: Path) -> None:
    """Compare a downloaded file with the digest after which the client names it: sha256, or for small files git's."""
    blob = path.resolve()
    if blob.name == path.name:  # a file system without links
        return
    if len(blob.name) == _SHA256_DIGITS:
        found = sha256(path)
    elif len(blob.name) == _GIT_DIGITS:
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        return
    if found != blob.name:
        raise ValueError(f"{path}: damaged on its way: the hub's digest of it is {blob.name}; to fetch it again, delete {blob}")


def _download_file(origin: Origin) -> tuple[Path, Path]:
    """One file, and the config of its training if that lies beside it; the second path is the repository's."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    path = Path(hf_hub_download(str(origin.repo), str(origin.file), revision=origin.revision))
    root = path.parents[len(Path(str(origin.file)).parts) - 1]
    with contextlib.suppress(EntryNotFoundError):
        hf_hub_download(str(origin.repo), str(Path(str(origin.file)).with_suffix(".yaml")), revision=root.name)
    return path, root


def _download_folder(origin: Origin, weights: bool) -> tuple[Path, Path]:
    """A folder, or the whole of a repository in the diffusers layout; the second path is the repository's."""
    from huggingface_hub import snapshot_download

    folder = f"{origin.file}/" if origin.file else ""

    def fetch(patterns: Iterable[str], revision: str | None) -> Path:
        return Path(snapshot_download(str(origin.repo), revision=revision, allow_patterns=[folder + part for part in patterns]))

    root = fetch(_CONFIGS, origin.revision)
    for form in _FORMS if weights else ():
        wanting = [part for part in _FOLDERS if _lacks_weights(root / folder / part)]
        patterns = [part + pattern.format(_stem(part, pattern)) for part in wanting for pattern in form]
        if patterns:
            fetch(patterns, root.name)
    return root / folder, root


def _lacks_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not find_weights(folder)


def _stem(part: str, pattern: str) -> str:
    if part != "text_encoder/":
        return "diffusion_pytorch_model"
    return "pytorch_model" if ".bin" in pattern else "model"
