"""Fetch the images of the experiment and bring them into one form.

Reads the source that `download.source` names: a local folder, a dataset of the Hugging Face hub, a list of addresses, or
a Bing search. Writes a folder of RGB PNG files 0001.png, 0002.png … and manifest.csv: for each file its source, the
sha256 of the bytes received and of the file written, the licence, the size, and the caption that it came with, if any.

A stage of its own because it is the only one that meets the outside world: everything after it starts from files whose
digests are in DVC's cache. A Bing search finds other images every day; its manifest.csv pins what was found and, given
back as download/source=urls, fetches just that again.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import DirectoryPath, Field, FilePath
from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import Commit, Count, Repo, Text, strict
from stages.pipeline.outputs import atomic_directory

if TYPE_CHECKING:
    from stages.dataset.sources import Candidate

Seconds = Annotated[int, Field(ge=1, le=600)]


@dataclass(frozen=True, config=strict)
class FolderSource:
    """A local folder and its subfolders; manifest.csv in it may say where the images come from, text files what they show."""

    kind: Literal["folder"]
    path: DirectoryPath

    def __post_init__(self) -> None:
        """Name the files for which `dvc repro` would fail without saying which; `sync` checks this before DVC looks at them."""
        from stages.dataset.folders import names_not_utf8, say

        say(names_not_utf8(self.path), f"warning: in {self.path}, DVC cannot watch names that are not UTF-8", "rename them")


@dataclass(frozen=True, config=strict)
class HubFilesSource:
    """Image files of a hub dataset repository whose paths match one of `patterns`."""

    kind: Literal["hub_files"]
    repo: Repo
    revision: Commit
    patterns: Annotated[tuple[Text, ...], Field(min_length=1)]


@dataclass(frozen=True, config=strict)
class HubDatasetSource:
    """The image column of one split of a hub dataset, as `datasets.load_dataset` reads it, and the column of its captions."""

    kind: Literal["hub_dataset"]
    repo: Repo
    revision: Commit
    split: Text
    image_column: Text
    caption_column: Text | None


@dataclass(frozen=True, config=strict)
class UrlsSource:
    """Addresses of a csv file (source, source_sha256, licence, perhaps caption); `timeout` in seconds."""

    kind: Literal["urls"]
    list: FilePath
    timeout: Seconds


@dataclass(frozen=True, config=strict)
class BingSource:
    """The first `limit` images that a Bing search finds today; `timeout` in seconds."""

    kind: Literal["bing"]
    query: Text
    limit: Annotated[int, Field(ge=1, le=1000)]
    timeout: Seconds


Source = Annotated[FolderSource | HubFilesSource | HubDatasetSource | UrlsSource | BingSource, Field(discriminator="kind")]


@dataclass(frozen=True, config=strict)
class DownloadConfig:
    """What to fetch, and what is good enough.

    Attributes:
        source: where the images come from.
        on_bad: what an image that cannot be used does: "fail" the stage, or be left out ("skip").
        min_size: least length of the shorter side, in pixels.
        max_pixels: most pixels of an image; at most the limit beyond which Pillow speaks of decompression bombs.
        min_images: fewer usable images than this fail the stage.
        max_images: later images of the source are not read; null for all.
    """

    source: Source
    on_bad: Literal["fail", "skip"]
    min_size: Count
    max_pixels: Annotated[int, Field(ge=1, le=89_478_485)]
    min_images: Count
    max_images: Count | None

    def __post_init__(self) -> None:
        """Check that the two counts leave room between them."""
        if self.max_images is not None and self.max_images < self.min_images:
            raise ValueError(f"max_images: {self.max_images} is less than min_images, {self.min_images}")


def stage(config: DownloadConfig, out: Path) -> None:
    """Fetch, check and rename the images of `config.source`.

    Args:
        config: the section of params.yaml named as the stage.
        out: the directory to write the images and their manifest to.
    """
    from stages.dataset.collection import collect
    from stages.dataset.images import decode

    with TemporaryDirectory() as scratch, atomic_directory(out) as folder:
        candidates = _candidates(config.source, Path(scratch))
        check = partial(decode, min_size=config.min_size, max_pixels=config.max_pixels)
        rows = collect(candidates, folder, check, config.on_bad, config.max_images)
        if len(rows) < config.min_images:
            raise ValueError(f"{len(rows)} of {len(candidates)} images are usable; download.min_images is {config.min_images}")
    print(f"{len(rows)} images")


def _candidates(source: Source, scratch: Path) -> "list[Candidate]":
    """Ask the source what it offers; the hub's client is imported only where it is needed."""
    from stages.dataset import sources, web

    match source:
        case FolderSource():
            return sources.folder_candidates(source.path)
        case UrlsSource():
            return web.url_candidates(source.list, source.timeout)
        case BingSource():
            return web.search_candidates(source.query, source.limit, scratch, source.timeout)
    from stages.dataset import hub_sources

    if isinstance(source, HubFilesSource):
        return hub_sources.hub_file_candidates(source.repo, source.revision, source.patterns)
    columns = source.image_column, source.caption_column
    return hub_sources.hub_dataset_candidates(source.repo, source.revision, source.split, *columns)


if __name__ == "__main__":
    run(stage)
