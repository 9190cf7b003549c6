"""Fetch the images of the experiment and bring them into one form.

Reads the source that `download.source` names: a local folder, a dataset of the Hugging Face hub, a list of addresses, or
a Bing search. Writes a folder of RGB PNG files 0001.png, 0002.png … and manifest.csv: for each file its source, the
sha256 of the bytes received and of the file written, the licence, the size, and the caption that it came with, if any.

A stage of its own because it is the only one that meets the outside world: everything after it starts from files whose
digests are in DVC's cache. A Bing search finds other images every day; its manifest.csv pins what was found and, given
back as download/source=urls, fetches just that again. Some images are held out here (`download.held_out_images`, the split
`test` in manifest.csv), before anything else sees them: no training learns from them, and likeness is measured to them.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from stages.dataset.config import BingSource, CollectionConfig, FolderSource, HubFilesSource, ImageSource, UrlsSource
from stages.pipeline.command import run
from stages.pipeline.config import strict
from stages.pipeline.outputs import atomic_directory

if TYPE_CHECKING:
    from stages.dataset.candidates import Candidate


@dataclass(frozen=True, config=strict)
class DownloadConfig(CollectionConfig):
    """What to fetch, and what is good enough.

    Attributes:
        source: where the images come from.
    """

    source: ImageSource


def stage(config: DownloadConfig, out: Path) -> None:
    """Fetch, check and rename the images of `config.source`.

    Args:
        config: the section of params.yaml named as the stage.
        out: the directory to write the images and their manifest to.
    """
    from stages.dataset.collection import collect
    from stages.dataset.metadata import TEST

    with TemporaryDirectory() as scratch, atomic_directory(out) as folder:
        rows = collect(_candidates(config.source, Path(scratch)), folder, config)
    held_out = sum(row.split == TEST for row in rows)
    print(f"images: {len(rows)}" + (f", {held_out} of them held out from training" if held_out else ""))


def _candidates(source: ImageSource, scratch: Path) -> "list[Candidate]":
    """Ask the source what it offers; the hub's client is imported only where it is needed."""
    from stages.dataset import candidates, web

    match source:
        case FolderSource():
            return candidates.folder_candidates(source)
        case UrlsSource():
            return web.url_candidates(source)
        case BingSource():
            return web.search_candidates(source, scratch)
    from stages.dataset import hub_sources

    if isinstance(source, HubFilesSource):
        return hub_sources.hub_file_candidates(source)
    return hub_sources.hub_dataset_candidates(source)


if __name__ == "__main__":
    run(stage)
