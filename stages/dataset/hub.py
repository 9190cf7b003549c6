"""Images of a dataset repository of the Hugging Face hub, at one commit."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
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

from stages.dataset.folders import CAPTION_SUFFIXES, list_images, visible_files
from stages.dataset.images import RefusedImageError
from stages.dataset.own_captions import CAPTION_COLUMNS, TABLES, own_captions, tidy
from stages.dataset.sources import Candidate

UNREACHABLE = "it is not in the local cache, and the hub cannot be reached: check the connection, and unset HF_HUB_OFFLINE"


def hub_file_candidates(repo: str, revision: str, patterns: Sequence[str]) -> list[Candidate]:
    """The image files of a dataset repository with their own captions (see `own_captions`), in the order of their paths.

    Args:
        repo: hub id, "owner/name".
        revision: commit.
        patterns: shell patterns of the paths to take, such as "train/*"; "*" matches slashes too. Text files that bear the
            names of images, and tables beside them, are fetched too.

    Raises:
        OSError: the hub, the repository or the commit cannot be reached.
        ValueError: no image matches.
    """
    texts = sorted({text for pattern in patterns for text in _texts_beside(pattern)})
    wanted = [*patterns, *texts]
    with plain_errors(f"dataset {repo}@{revision}"):
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=[*wanted, "README.md"]))
    found = visible_files(folder)
    files = {name: found[name] for name in filter_repo_objects(found, allow_patterns=wanted)}
    images = list_images({name: files[name] for name in filter_repo_objects(files, allow_patterns=list(patterns))})
    if not images:
        raise ValueError(f"{repo}@{revision} has no image file that matches {', '.join(patterns)}")
    captions = own_captions(files, images.keys(), repo.partition("/")[2])
    licence = _licence(folder / "README.md")
    address = f"hf://datasets/{repo}@{revision}"
    return [
        Candidate(f"{repo}: {name}", f"{address}/{name}", licence, None, partial(_read_blob, path), captions.get(name, ""))
        for name, path in images.items()
    ]


def _texts_beside(pattern: str) -> Iterator[str]:
    """Patterns of the captions of what a pattern matches: of the same names, and in tables of the same folder."""
    path = PurePosixPath(pattern)
    yield from (str(path.with_suffix(suffix)) for suffix in CAPTION_SUFFIXES)
    yield from (str(path.with_name(table)) for table in TABLES)


def hub_dataset_candidates(
    repo: str, revision: str, split: str, image_column: str, caption_column: str | None
) -> list[Candidate]:
    """The images of a column of a dataset (parquet, imagefolder or webdataset), in the order of its rows.

    Args:
        repo: hub id, "owner/name".
        revision: commit.
        split: such as "train".
        image_column: such as "image".
        caption_column: of the images' own captions; None for none, with a line where a column may hold some.

    Raises:
        OSError: the hub, the repository or the commit cannot be reached.
        ValueError: no such split or column, or a column does not hold images or text.
    """
    from datasets import Image, load_dataset

    with plain_errors(f"dataset {repo}@{revision}"):
        licence = _card_licence(repo, revision)  # first: its errors say more than load_dataset's
        table = load_dataset(repo, revision=revision, split=split)
    _check_columns(f"{repo}@{revision}", table.features, image_column, caption_column)
    rows = table.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    captions = [tidy(text or "") for text in table[caption_column]] if caption_column else [""] * len(rows)
    address = f"hf://datasets/{repo}@{revision}"
    return [
        Candidate(
            f"{repo}: row {row}",
            f"{address}#{split}/{row}",
            licence,
            None,
            partial(_read_cell, rows, row, image_column),
            caption,
        )
        for row, caption in enumerate(captions)
    ]


def _check_columns(name: str, features: Mapping[str, Any], image_column: str, caption_column: str | None) -> None:
    """Refuse columns that are not there or hold something else; name those that may hold captions and are not used."""
    from datasets import Image, Value

    texts = [
        column for column, kind in features.items() if isinstance(kind, Value) and kind.dtype in ("string", "large_string")
    ]
    columns = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
    if not isinstance(features.get(image_column), Image):
        raise ValueError(f"{name} has no column {image_column!r} of images; it has: {columns}")
    if caption_column is not None and caption_column not in texts:
        raise ValueError(f"{name} has no column {caption_column!r} of text; it has: {columns}")
    unused = [column for column in texts if column.lower() in (*CAPTION_COLUMNS, "prompt", "captions", "description")]
    if caption_column is None and unused:
        advice = f"to use it, set download.source.caption_column={unused[0]}"
        print(f"{name} has a column {unused[0]!r} that may hold captions, and it is not used; {advice}", file=sys.stderr)


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
