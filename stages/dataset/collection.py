"""From candidates of any source to a folder of checked images with standard names and a manifest."""

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from PIL import Image

from stages.dataset.candidates import Candidate
from stages.dataset.config import CollectionConfig, held_out_problem
from stages.dataset.images import RefusedImageError, decode, decode_mask, pixel_digest, save_png
from stages.dataset.metadata import MASKS, SKIPPED, SKIPPED_COLUMNS, TEST, TRAIN, ManifestRow, write_manifest
from stages.pipeline.progress import track
from stages.pipeline.tables import write_table
from stages.pipeline.wording import counted


def collect(candidates: Sequence[Candidate], folder: Path, config: CollectionConfig) -> list[ManifestRow]:
    """Write the usable candidates as 0001.png, 0002.png … in their order, and masks, manifest.csv and skipped.csv beside them.

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
    for number, decoded in enumerate(islice(usable, config.max_images), start=1):
        candidate, image = decoded.candidate, decoded.image
        path = folder / f"{number:0{digits}d}.png"
        save_png(image, path)
        names.append(candidate.name)
        shown.append(pixel_digest(image))
        rows.append(
            ManifestRow(
                file_name=path.name,
                source=candidate.source,
                source_sha256=hashlib.sha256(decoded.data).hexdigest(),
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                licence=candidate.licence,
                width=image.width,
                height=image.height,
                mask_sha256=_save_mask(decoded.mask, folder / MASKS / path.name),
                image_set=candidate.image_set.name,
                repeats=candidate.image_set.repeats,
            )
        )
    if len(rows) < config.min_images:
        counts = f"{len(rows)} of {len(candidates)} images can be used"
        raise ValueError(f"{counts}; download.min_images is {config.min_images}: add images, or set it lower")
    held_out = choose_held_out(shown, config.held_out_images, [row.image_set for row in rows])
    common = math.gcd(*(row.repeats for row in rows))
    rows = [
        replace(row, caption=captions[name], split=TEST if digest in held_out else TRAIN, repeats=row.repeats // common)
        for row, name, digest in zip(rows, names, shown, strict=True)
    ]
    _say_sets(rows)
    write_manifest(folder, rows)
    write_table(folder / SKIPPED, SKIPPED_COLUMNS, skipped)
    return rows


def _save_mask(mask: Image.Image | None, path: Path) -> str:
    """Write a mask, and give the digest of its file; "" where there is none."""
    if mask is None:
        return ""
    path.parent.mkdir(exist_ok=True)
    save_png(mask, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _say_sets(rows: Sequence[ManifestRow]) -> None:
    """Say how many images there are of each set, and how often an epoch shows them; nothing where it is all one."""
    sets = Counter((row.image_set, row.repeats) for row in rows)
    if len(sets) > 1:
        said = [
            f"{name or 'in no set'}: {counted(count, 'image')}" + (f", {times} times an epoch" if times > 1 else "")
            for (name, times), count in sorted(sets.items())
        ]
        print("image sets: " + "; ".join(said), file=sys.stderr)


def choose_held_out(digests: Sequence[str], count: int, sets: Sequence[str] = ()) -> set[str]:
    """Those of the images that are held out from every training, by digests of what they show.

    The digest alone decides: another order, other names or other files of the same pictures hold out the same ones, and with a
    picture more, at most one is exchanged. Of several image sets each gives its share, and one at least where `count` allows.

    Args:
        digests: of the images, all different.
        count: how many to hold out.
        sets: the name of the set of each image; () where there are none.

    Raises:
        ValueError: none would be left to train on.
    """
    if problem := held_out_problem(count, len(digests), counted(len(digests), "image")):
        raise ValueError(problem)
    by_set: dict[str, list[str]] = {}
    for digest, name in zip(digests, sets or [""] * len(digests), strict=True):
        by_set.setdefault(name, []).append(digest)
    shares = _shares({name: len(by_set[name]) for name in sorted(by_set)}, count)
    return {digest for name, share in shares.items() for digest in sorted(by_set[name])[:share]}


def _shares(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """How many of `count` each of several sets gives: of each its share, and its last image only where no other is left."""
    shares = dict.fromkeys(sizes, 0)

    def given(name: str) -> tuple[bool, float, str]:
        return shares[name] >= sizes[name] - 1, shares[name] / sizes[name], name

    for _ in range(count):
        shares[min(sizes, key=given)] += 1
    return shares


@dataclass(frozen=True)
class Decoded:
    """A candidate that was read: its bytes, its picture, and its mask, if it has one."""

    candidate: Candidate
    data: bytes
    image: Image.Image
    mask: Image.Image | None


class Skipped(list[tuple[str, str]]):
    """The candidates that are left out, each with the reason, in the order in which they were looked at."""

    def add(self, name: str, why: str) -> None:
        """Note that a candidate is left out, and say so."""
        self.append((name, why))
        print(f"skipped {name}: {why}", file=sys.stderr)


def _usable(candidates: Iterator[Candidate], config: CollectionConfig, skipped: Skipped) -> Iterator[Decoded]:
    for candidate in candidates:
        if not candidate.image_set.repeats:
            skipped.add(candidate.name, "its folder has 0 repeats")
            continue
        try:
            data = candidate.read()
            image, alpha = decode(data, config.min_size, config.max_pixels)
            mask = _mask(candidate, image, alpha if config.alpha_mask else None, config.max_pixels)
        except RefusedImageError as error:
            why = " ".join(str(error).split())
            if config.on_bad == "fail":
                raise RefusedImageError(f"{candidate.name}: {why}; remove it, or set download.on_bad=skip") from error
            skipped.add(candidate.name, why)
        else:
            yield Decoded(candidate, data, image, mask)


def _mask(candidate: Candidate, image: Image.Image, alpha: Image.Image | None, max_pixels: int) -> Image.Image | None:
    """The mask of an image: the one that its source has for it, or else what is opaque in it."""
    if candidate.mask is None:
        if alpha is not None and not alpha.getextrema()[1]:
            raise RefusedImageError("is all transparent: its mask (download.alpha_mask) leaves nothing of it")
        return alpha
    try:
        return decode_mask(candidate.mask(), image.size, max_pixels)
    except (RefusedImageError, OSError) as error:
        raise RefusedImageError(f"its mask {error}") from error


def _distinct(decoded: Iterator[Decoded], captions: dict[str, str], skipped: Skipped) -> Iterator[Decoded]:
    """Leave out what shows the same as an earlier one; `captions` gets the captions of the others, by their names."""
    seen: dict[str, str] = {}
    for each in decoded:
        candidate, digest = each.candidate, pixel_digest(each.image)
        if digest not in seen:
            seen[digest] = candidate.name
            captions[candidate.name] = candidate.caption
            yield each
            continue
        first = seen[digest]
        lost = candidate.caption and captions[first] not in ("", candidate.caption)
        captions[first] = captions[first] or candidate.caption
        besides = f", and its caption is another, which is not used: {candidate.caption}" if lost else ""
        skipped.add(candidate.name, f"shows the same as {first}{besides}")
