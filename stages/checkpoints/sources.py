"""Finding a checkpoint: on this machine, or at a pinned commit of the Hugging Face hub."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from stages.checkpoints.files.tensors import sha256
from stages.checkpoints.files.weight_files import FILE_SUFFIXES, find_weights

# What this room reads of a repository in the diffusers layout: no other formats and no safety checker.
_CONFIGS = ("model_index.json", "config.json", "*/config.json", "scheduler/*.json", "tokenizer/*")
_FOLDERS = ("", "unet/", "vae/", "text_encoder/")
# Forms of weights in order of preference; a form is fetched only for the folders that have none before it.
_FORMS = (
    ("{}.safetensors", "{}.safetensors.index.json", "{}-*-of-*.safetensors"),
    ("{}.fp16.safetensors", "{}.safetensors.index.fp16.json", "{}.fp16-*-of-*.safetensors"),
    ("{}.bin", "{}.bin.index.json", "{}-*-of-*.bin"),
)


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
    from stages.pipeline.hub.client import damage, hub_access

    with hub_access(f"{origin.repo} at {origin.revision}: not fetched from the hub"):
        is_file = origin.file is not None and origin.file.endswith(FILE_SUFFIXES)
        path, root = _download_file(origin) if is_file else _download_folder(origin, weights)
    if weights:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and (harm := damage(file)):
                raise ValueError(f"{file}: damaged on its way: {harm}")
    commit = root.name  # the client keeps a repository's files under snapshots/<commit>
    name = "/".join(filter(None, (f"{origin.repo}@{commit}", origin.file)))
    note = f"{origin.repo}: {origin.revision} is commit {commit} now: write that into conf as its revision"
    return Location(path, name, (note,) if commit != origin.revision else ())


def _download_file(origin: Origin) -> tuple[Path, Path]:
    """One file, and the config of its training if that lies beside it; the second path is the repository's."""
    from huggingface_hub import hf_hub_download

    from stages.pipeline.hub.client import fetch_if_there

    path = Path(hf_hub_download(str(origin.repo), str(origin.file), revision=origin.revision))
    root = path.parents[len(Path(str(origin.file)).parts) - 1]
    neighbour = Path(str(origin.file)).with_suffix(".yaml").as_posix()
    fetch_if_there(str(origin.repo), neighbour, repo_type="model", revision=root.name)
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
