"""From candidates of any source to a folder of checked images with standard names and a manifest."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from PIL import Image

from stages.dataset.candidates import Candidate
from stages.dataset.config import CollectionConfig, held_out_problem
from stages.dataset.images import RefusedImageError, decode, pixel_digest, save_png
from stages.dataset.metadata import SKIPPED, SKIPPED_COLUMNS, TEST, TRAIN, ManifestRow, write_manifest
from stages.pipeline.progress import track
from stages.pipeline.tables import write_table
from stages.pipeline.wording import counted


def collect(candidates: Sequence[Candidate], folder: Path, config: CollectionConfig) -> list[ManifestRow]:
    """Write the usable candidates as 0001.png, 0002.png … in their order, and manifest.csv and skipped.csv beside them.

    A candidate that shows exactly what an earlier one shows is left out, with a line that says so; the earlier one takes its
    caption if it has none itself.

    Args:
        candidates: of one source; read one at a time.
        folder: where to write; it exists and is empty.
        config: which of them to take.

    Returns:
        The rows of the manifest.

    Raises:
        RefusedImageError: a candidate cannot be used, and `on_bad` is "fail".
        ValueError: fewer than `min_images` can be used, or none is left to train on.
    """
    digits = max(4, len(str(len(candidates))))
    captions: dict[str, str] = {}
    skipped = Skipped()
    usable = _distinct(_usable(track(candidates, "images"), config, skipped), captions, skipped)
    rows, names, shown = [], [], []
    for number, (candidate, data, image) in enumerate(islice(usable, config.max_images), start=1):
        path = folder / f"{number:0{digits}d}.png"
        save_png(image, path)
        names.append(candidate.name)
        shown.append(pixel_digest(image))
        rows.append(
            ManifestRow(
                file_name=path.name,
                source=candidate.source,
                source_sha256=hashlib.sha256(data).hexdigest(),
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                licence=candidate.licence,
                width=image.width,
                height=image.height,
            )
        )
    if len(rows) < config.min_images:
        counts = f"{len(rows)} of {len(candidates)} images can be used"
        raise ValueError(f"{counts}; download.min_images is {config.min_images}: add images, or set it lower")
    held_out = choose_held_out(shown, config.held_out_images)
    rows = [
        replace(row, caption=captions[name], split=TEST if digest in held_out else TRAIN)
        for row, name, digest in zip(rows, names, shown, strict=True)
    ]
    write_manifest(folder, rows)
    write_table(folder / SKIPPED, SKIPPED_COLUMNS, skipped)
    return rows


def choose_held_out(digests: Sequence[str], count: int) -> set[str]:
    """Those of the images that are held out from every training, by digests of what they show.

    The digest alone decides: another order, other names or other files of the same pictures hold out the same ones, and with a
    picture more, at most one is exchanged.

    Raises:
        ValueError: none would be left to train on.
    """
    if problem := held_out_problem(count, len(digests), counted(len(digests), "image")):
        raise ValueError(problem)
    return set(sorted(digests)[:count])


Decoded = tuple[Candidate, bytes, Image.Image]


class Skipped(list[tuple[str, str]]):
    """The candidates that are left out, each with the reason, in the order in which they were looked at."""

    def add(self, name: str, why: str) -> None:
        """Note that a candidate is left out, and say so."""
        self.append((name, why))
        print(f"skipped {name}: {why}", file=sys.stderr)


def _usable(candidates: Iterator[Candidate], config: CollectionConfig, skipped: Skipped) -> Iterator[Decoded]:
    for candidate in candidates:
        try:
            data = candidate.read()
            image = decode(data, config.min_size, config.max_pixels)
        except RefusedImageError as error:
            why = " ".join(str(error).split())
            if config.on_bad == "fail":
                raise RefusedImageError(f"{candidate.name}: {why}; remove it, or set download.on_bad=skip") from error
            skipped.add(candidate.name, why)
        else:
            yield candidate, data, image


def _distinct(decoded: Iterator[Decoded], captions: dict[str, str], skipped: Skipped) -> Iterator[Decoded]:
    """Leave out what shows the same as an earlier one; `captions` gets the captions of the others, by their names."""
    seen: dict[str, str] = {}
    for candidate, data, image in decoded:
        digest = pixel_digest(image)
        if digest not in seen:
            seen[digest] = candidate.name
            captions[candidate.name] = candidate.caption
            yield candidate, data, image
            continue
        first = seen[digest]
        lost = candidate.caption and captions[first] not in ("", candidate.caption)
        captions[first] = captions[first] or candidate.caption
        besides = f", and its caption is another, which is not used: {candidate.caption}" if lost else ""
        skipped.add(candidate.name, f"shows the same as {first}{besides}")
