"""Files of the hub's repositories at one commit: fetched, or from the cache of the hub's client, and not damaged.

Each file is compared with the digest that the hub gave of it, because the client only counts bytes; so is what was fetched
by an earlier run or by another program.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.utils import filter_repo_objects

from stages.pipeline.config import ModelSource
from stages.pipeline.hub.client import damage, fetch_if_there, hub_access


class Layout(NamedTuple):
    """Which files of a repository make a model; all patterns are of paths in the model's folder.

    Attributes:
        small: Patterns of everything but weights: configs, the tokenizer.
        weights: The forms that weights come in, best first: for each folder that may hold some, the patterns of their files.
            A folder with a config.json gets the first form that the repository has of it.
    """

    small: tuple[str, ...]
    weights: tuple[Mapping[str, Sequence[str]], ...]


class Fetched(NamedTuple):
    """A file or a folder of a repository.

    Attributes:
        path: On this machine.
        commit: Of the repository, 40 hex digits.
    """

    path: Path
    commit: str


TRANSFORMERS = Layout(
    small=(
        *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.json", "vocab.txt", "merges.txt"),
    ),
    weights=(
        {"": ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")},
        {"": ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")},
    ),
)
"""A model with its tokenizer and its image processor, as the transformers library saves and loads them."""


def fetch_model(setting: str, source: ModelSource) -> Path:
    """The folder of a model of the transformers library.

    Args:
        setting: that names the source; an error begins with it.
        source: a folder on this machine, or a repository, which is fetched.

    Raises:
        ValueError: the repository cannot be had, or a file of it was damaged on its way; which, and what to do.
    """
    if source.path is not None:
        return source.path
    try:
        return fetch_folder(str(source.repo), str(source.revision), TRANSFORMERS).path
    except (ValueError, OSError) as error:
        raise ValueError(f"{setting}: {error}") from error


def fetch_folder(repo: str, revision: str | None, layout: Layout, folder: str = "") -> Fetched:
    """The files of a model in a repository, or in a folder of it; files that the layout does not name may lie beside them.

    Raises:
        OSError: the hub, the repository or the commit cannot be reached, and the files are not all in the cache.
        ValueError: a file was damaged on its way; it is named.
    """
    inside = f"{folder}/" if folder else ""
    small = [inside + pattern for pattern in layout.small]
    with hub_access(f"{repo} at {revision}: not fetched from the hub"):
        root = snapshot(repo, revision, small)
        for number, form in enumerate(layout.weights):
            wanting = [part for part in form if _lacks_weights(root / folder, part, layout.weights[:number])]
            patterns = [inside + part + pattern for part in wanting for pattern in form[part]]
            if patterns:
                snapshot(repo, root.name, [*small, *patterns])
    weights = (inside + part + pattern for form in layout.weights for part in form for pattern in form[part])
    files = {path.relative_to(root).as_posix(): path for path in (root / folder).rglob("*") if path.is_file()}
    check(repo, {name: files[name] for name in filter_repo_objects(sorted(files), allow_patterns=[*small, *weights])})
    return Fetched(root / folder, root.name)


def fetch_file(repo: str, revision: str | None, file: str, beside: Sequence[str] = ()) -> Fetched:
    """One file of a repository, and of the files that may lie beside it those that do.

    Raises:
        OSError: the hub, the repository or the commit cannot be reached, or has no such file.
        ValueError: a file was damaged on its way; it is named.
    """
    with hub_access(f"{repo} at {revision}: not fetched from the hub"):
        path = Path(hf_hub_download(repo, file, revision=revision))
        commit = path.parents[len(PurePosixPath(file).parts) - 1].name
        others = {name: fetch_if_there(repo, name, repo_type="model", revision=commit) for name in beside}
    check(repo, {file: path} | {name: found for name, found in others.items() if found})
    return Fetched(path, commit)


def snapshot(repo: str, revision: str | None, patterns: Sequence[str], repo_type: str = "model") -> Path:
    """The folder of a commit, with those files, or more, whose paths match a shell pattern; to call inside `hub_access`."""
    return Path(snapshot_download(repo, repo_type=repo_type, revision=revision, allow_patterns=list(patterns)))


def check(repo: str, files: Mapping[str, Path]) -> None:
    """Compare files of a repository, by their paths in it, with the hub's digests.

    Raises:
        ValueError: one of them is damaged; it is named.
    """
    for name, path in files.items():
        if harm := damage(path):
            raise ValueError(f"{repo}: {name}: damaged on its way: {harm}")


def _lacks_weights(folder: Path, part: str, forms: Sequence[Mapping[str, Sequence[str]]]) -> bool:
    """Whether a part of a model is there without weights of any of these forms."""
    found = (path for form in forms for pattern in form.get(part, ()) for path in (folder / part).glob(pattern))
    return (folder / part / "config.json").is_file() and next(found, None) is None
