"""Images of a dataset repository of the Hugging Face hub, at one commit."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import DatasetCard, snapshot_download
from huggingface_hub.utils import filter_repo_objects

from stages.dataset.folders import CAPTION_SUFFIXES, list_images, visible_files
from stages.dataset.images import RefusedImageError
from stages.dataset.own_captions import CAPTION_COLUMNS, TABLES, own_captions, tidy
from stages.dataset.sources import Candidate
from stages.pipeline.hub.client import damage, fetch_if_there, hub_access


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
    with hub_access(f"dataset {repo}@{revision}"):
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=[*wanted, "README.md"]))
    found = visible_files(folder)
    files = {name: found[name] for name in filter_repo_objects(found, allow_patterns=wanted)}
    images = list_images({name: files[name] for name in filter_repo_objects(files, allow_patterns=list(patterns))})
    if not images:
        raise ValueError(f"{repo}@{revision} has no image file that matches {', '.join(patterns)}")
    for name in files.keys() - images.keys():
        if harm := damage(files[name]):
            raise ValueError(f"{repo}: {name}: was damaged on its way: {harm}")
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
    if not path.name:
        return
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

    with hub_access(f"dataset {repo}@{revision}"):
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


def _read_blob(path: Path) -> bytes:
    harm = damage(path)
    if harm is not None:
        raise RefusedImageError(f"was damaged on its way: {harm}")
    return path.read_bytes()


def _read_cell(rows: Any, row: int, image_column: str) -> bytes:
    cell = rows[row][image_column]
    if cell is None:
        raise RefusedImageError("holds no image")
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()


def _card_licence(repo: str, revision: str) -> str:
    card = fetch_if_there(repo, "README.md", repo_type="dataset", revision=revision)
    return _licence(card) if card else ""


def _licence(card: Path) -> str:
    """The licence in a dataset card; empty where there is no card, or none in it."""
    try:
        licence = DatasetCard.load(card).data.get("license")
    except (OSError, ValueError):
        return ""
    return ", ".join(licence) if isinstance(licence, list) else str(licence or "")
