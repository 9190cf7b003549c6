"""Images of a dataset repository of the Hugging Face hub, at one commit."""

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import DatasetCard
from huggingface_hub.utils import filter_repo_objects

from stages.dataset.candidates import Candidate
from stages.dataset.config import HubDatasetSource, HubFilesSource
from stages.dataset.folders import CAPTION_SUFFIXES, list_images, visible_files
from stages.dataset.images import RefusedImageError
from stages.dataset.own_captions import CAPTION_COLUMNS, TABLES, image_sets, own_captions, tidy
from stages.pipeline.hub.client import damage, fetch_if_there, hub_access
from stages.pipeline.hub.repositories import check, snapshot


def hub_file_candidates(source: HubFilesSource) -> list[Candidate]:
    """The image files of a dataset repository with their own captions (see `own_captions`), in the order of their paths.

    Text files that bear the names of images, and tables beside them, are fetched too.

    Raises:
        OSError: the hub, the repository or the commit cannot be reached.
        ValueError: no image matches.
    """
    texts = sorted({text for pattern in source.patterns for text in _texts_beside(pattern)})
    wanted = [*source.patterns, *texts]
    pinned = f"{source.repo}@{source.revision}"
    with hub_access(f"dataset {pinned}"):
        fetched = [*wanted, "README.md"]
        folder = snapshot(source.repo, source.revision, fetched, repo_type="dataset")
    found = visible_files(folder)
    files = {name: found[name] for name in filter_repo_objects(found, allow_patterns=wanted)}
    images = list_images({name: files[name] for name in filter_repo_objects(files, allow_patterns=list(source.patterns))})
    if not images:
        raise ValueError(f"{pinned} has no image file that matches {', '.join(source.patterns)}")
    check(source.repo, {name: files[name] for name in sorted(files.keys() - images.keys())})
    captions = own_captions(files, images.keys(), source.repo.partition("/")[2])
    licence = _licence(folder / "README.md")
    address = f"hf://datasets/{pinned}"

    def candidate(name: str, path: Path) -> Candidate:
        load = partial(_read_blob, path)
        called = f"{source.repo}: {name}", f"{address}/{name}"
        return Candidate(*called, licence, None, load, captions.get(name, ""), sets[name])

    sets = image_sets(images, source.repo.partition("/")[2])
    return [candidate(name, path) for name, path in images.items()]


def _texts_beside(pattern: str) -> Iterator[str]:
    """Patterns of the captions of what a pattern matches: of the same names, and in tables of the same folder."""
    path = PurePosixPath(pattern)
    if not path.name:
        return
    yield from (str(path.with_suffix(suffix)) for suffix in CAPTION_SUFFIXES)
    yield from (str(path.with_name(table)) for table in TABLES)


def hub_dataset_candidates(source: HubDatasetSource) -> list[Candidate]:
    """The images of a column of a dataset (parquet, imagefolder or webdataset), in the order of its rows.

    Where no column of captions is named, a line says which columns may hold some.

    Raises:
        OSError: the hub, the repository or the commit cannot be reached.
        ValueError: no such split or column, or a column does not hold images or text.
    """
    from datasets import Image, load_dataset

    pinned = f"{source.repo}@{source.revision}"
    with hub_access(f"dataset {pinned}"):
        licence = _card_licence(source)  # first: its errors say more than load_dataset's
        table = load_dataset(source.repo, revision=source.revision, split=source.split)
    _check_columns(source, table.features)
    rows = table.select_columns([source.image_column]).cast_column(source.image_column, Image(decode=False))
    named = source.caption_column
    captions = [tidy(text or "") for text in table[named]] if named else [""] * len(rows)
    address = f"hf://datasets/{pinned}#{source.split}"

    def candidate(row: int, caption: str) -> Candidate:
        load = partial(_read_cell, rows, row, source.image_column)
        return Candidate(f"{source.repo}: row {row}", f"{address}/{row}", licence, None, load, caption)

    return [candidate(row, caption) for row, caption in enumerate(captions)]


def _check_columns(source: HubDatasetSource, features: Mapping[str, Any]) -> None:
    """Refuse columns that are not there or hold something else; name those that may hold captions and are not used."""
    from datasets import Image, Value

    name = f"{source.repo}@{source.revision}"
    texts = [
        column for column, kind in features.items() if isinstance(kind, Value) and kind.dtype in ("string", "large_string")
    ]
    columns = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
    if not isinstance(features.get(source.image_column), Image):
        raise ValueError(f"{name} has no column {source.image_column!r} of images; it has: {columns}")
    if source.caption_column is not None and source.caption_column not in texts:
        raise ValueError(f"{name} has no column {source.caption_column!r} of text; it has: {columns}")
    unused = [column for column in texts if column.lower() in (*CAPTION_COLUMNS, "prompt", "captions", "description")]
    if source.caption_column is None and unused:
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


def _card_licence(source: HubDatasetSource) -> str:
    card = fetch_if_there(source.repo, "README.md", repo_type="dataset", revision=source.revision)
    return _licence(card) if card else ""


def _licence(card: Path) -> str:
    """The licence in a dataset card; empty where there is no card, or none in it."""
    try:
        licence = DatasetCard.load(card).data.get("license")
    except (OSError, ValueError):
        return ""
    return ", ".join(licence) if isinstance(licence, list) else str(licence or "")
