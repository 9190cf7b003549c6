"""Images of a dataset repository of the Hugging Face hub, at one commit."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from stages.dataset.images import RefusedImageError, list_images
from stages.dataset.sources import Candidate

UNREACHABLE = "it is not in the local cache, and the hub cannot be reached: check the connection, and unset HF_HUB_OFFLINE"


def hub_file_candidates(repo: str, revision: str, patterns: Sequence[str]) -> list[Candidate]:
    """The image files of a dataset repository, in the order of their paths.

    Args:
        repo: hub id, "owner/name".
        revision: commit.
        patterns: shell patterns of the paths to take, such as "train/*"; "*" matches slashes too.

    Raises:
        OSError: the hub, the repository or the commit cannot be reached.
        ValueError: no image matches.
    """
    with plain_errors(f"dataset {repo}@{revision}"):
        folder = snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=[*patterns, "README.md"])
    names = [path.relative_to(folder).as_posix() for path in list_images(Path(folder))]
    chosen = list(filter_repo_objects(names, allow_patterns=list(patterns)))
    if not chosen:
        raise ValueError(f"{repo}@{revision} has no image file that matches {', '.join(patterns)}")
    licence = _licence(Path(folder) / "README.md")
    address = f"hf://datasets/{repo}@{revision}"
    return [
        Candidate(f"{repo}: {name}", f"{address}/{name}", licence, None, partial(_read_blob, Path(folder) / name))
        for name in chosen
    ]


def hub_dataset_candidates(repo: str, revision: str, split: str, image_column: str) -> list[Candidate]:
    """The images of a column of a dataset (parquet, imagefolder or webdataset), in the order of its rows.

    Args:
        repo: hub id, "owner/name".
        revision: commit.
        split: such as "train".
        image_column: such as "image".

    Raises:
        OSError: the hub, the repository or the commit cannot be reached.
        ValueError: no such split or column, or the column holds no images.
    """
    from datasets import Image, load_dataset

    with plain_errors(f"dataset {repo}@{revision}"):
        licence = _card_licence(repo, revision)  # first: its errors say more than load_dataset's
        table = load_dataset(repo, revision=revision, split=split)
    if not isinstance(table.features.get(image_column), Image):
        columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in table.features.items())
        raise ValueError(f"{repo}@{revision} has no column {image_column!r} of images; it has: {columns}")
    rows = table.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    address = f"hf://datasets/{repo}@{revision}"
    return [
        Candidate(f"{repo}: row {row}", f"{address}#{split}/{row}", licence, None, partial(_read_cell, rows, row, image_column))
        for row in range(len(rows))
    ]


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn the hub client's errors, paragraphs of many kinds, into an `OSError` of one line: what was wanted, and the fix."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, HTTPError, EntryNotFoundError) as error:
        raise OSError(f"{what}: {_advice(error)}") from error


def _advice(error: BaseException) -> str:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    advice = {
        GatedRepoError: "its owner asks for a login: accept the terms on its page and set HF_TOKEN",
        RepositoryNotFoundError: "the hub has nothing of that name, or it is private: check the name, or set HF_TOKEN",
        RevisionNotFoundError: "it has no such commit on the hub: check the revision",
        LocalEntryNotFoundError: UNREACHABLE,
        ConnectionError: UNREACHABLE,
    }
    for kind, text in advice.items():
        if any(isinstance(cause, kind) for cause in causes):
            return text
    return " ".join(str(error).split()) or type(error).__name__


def _read_blob(path: Path) -> bytes:
    """Read a file of the hub cache, which names a blob by its digest but never compares the two."""
    data = path.read_bytes()
    expected = path.resolve().name
    digests = {64: hashlib.sha256(data), 40: hashlib.sha1(b"blob %d\0" % len(data) + data)}
    if path.is_symlink() and len(expected) in digests and digests[len(expected)].hexdigest() != expected:
        raise RefusedImageError(f"is damaged in the hub cache: remove {path.resolve()} and run again")
    return data


def _read_cell(rows: Any, row: int, image_column: str) -> bytes:
    cell = rows[row][image_column]
    if cell is None:
        raise RefusedImageError("holds no image")
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def _card_licence(repo: str, revision: str) -> str:
    try:
        return _licence(Path(hf_hub_download(repo, "README.md", repo_type="dataset", revision=revision)))
    except EntryNotFoundError:
        return ""


def _licence(card: Path) -> str:
    """The licence in a dataset card; empty where there is no card, or none in it."""
    try:
        licence = DatasetCard.load(card).data.get("license")
    except (OSError, ValueError):
        return ""
    return ", ".join(licence) if isinstance(licence, list) else str(licence or "")
