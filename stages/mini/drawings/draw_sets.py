"""Draw the training and held-out sets, and the two image sets that the pipeline's experiments start from.

Reads nothing. Writes <work>/drawings/<set>-<style>.npy (uint8, N x 64 x 64 x 3) with a .jsonl of attributes beside each, and
with --image-sets the folders asuka and eight_bit: PNGs, manifest.csv, and truth.csv, which only the evaluation reads.
"""

import argparse
import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.mini.drawings.portraits import (
    ADVENTURER,
    HELD_OUT_SEEDS,
    IMAGE_SET_SEEDS,
    PIXEL_ART,
    SIZE,
    SUBJECT_HAIR,
    TRAIN_SEEDS,
    attribution,
    caption,
    draw,
    style_named,
)
from stages.pipeline.outputs import atomic_directory, atomic_file
from stages.pipeline.progress import track

# Pixel art is for the VAE only, and from the far end of the seeds: no UNet sees it.
TRAIN_COUNTS = {"adventurer": 6500, "micah": 6000, "toon-head": 2500, "personas": 2500, "pixel-art": 2000}
HELD_OUT_COUNT = 300
IMAGE_SET_COUNT = 112
SUBJECT = {"hair": SUBJECT_HAIR, "hair_color": "red", "skin": "light"}


def draw_array(style: str, seeds: Sequence[int], out: Path, processes: int) -> None:
    """Draw one style at these seeds into `out` (.npy) and its attributes beside it (.jsonl); kept where it is there."""
    if out.exists():
        return
    images = np.empty((len(seeds), SIZE, SIZE, 3), np.uint8)
    with Pool(processes) as pool, atomic_file(out.with_suffix(".jsonl")) as part, part.open("w", encoding="utf-8") as file:
        drawings: Iterable[tuple[NDArray[np.uint8], dict[str, str]]] = pool.imap(
            partial(_draw_pixels, style), seeds, chunksize=16
        )
        for index, (pixels, attributes) in enumerate(track(drawings, f"drawing {out.stem}", total=len(seeds))):
            images[index] = pixels
            file.write(json.dumps(attributes) + "\n")
    with atomic_file(out) as part, part.open("wb") as file:
        np.save(file, images)


def read_array(path: Path) -> tuple[NDArray[np.uint8], list[dict[str, str]]]:
    """The images and the attributes that `draw_array` wrote."""
    lines = path.with_suffix(".jsonl").read_text("utf-8").splitlines()
    return np.load(path, mmap_mode="r"), [json.loads(line) for line in lines]


def write_image_set(style: str, asked: Mapping[str, str], seeds: Sequence[int], out: Path) -> None:
    """Write drawings as PNGs with manifest.csv (source, sha256, licence) and truth.csv (what each shows)."""
    with atomic_directory(out) as folder:
        credit = attribution(style)
        source = f"{credit['title']} by {credit['creator']}, {credit['source']}, drawn by DiceBear {style}"
        manifest, truth = [], []
        for number, seed in enumerate(track(seeds, f"drawing {out.name}"), start=1):
            image, attributes = draw(style, seed, asked)
            file_name = f"{number:04}.png"
            image.save(folder / file_name, format="PNG", compress_level=9)
            digest = hashlib.sha256((folder / file_name).read_bytes()).hexdigest()
            manifest.append({"file_name": file_name, "source": source, "sha256": digest, "licence": credit["licence"]})
            words = caption(style_named(style).caption, attributes)
            truth.append({"file_name": file_name, "caption": words} | attributes)
        _write_csv(folder / "manifest.csv", manifest)
        _write_csv(folder / "truth.csv", truth)


def _draw_pixels(style: str, seed: int) -> tuple[NDArray[np.uint8], dict[str, str]]:
    image, attributes = draw(style, seed)
    return np.asarray(image), attributes


def _write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m stages.mini.drawings.draw_sets", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the drawings")
    parser.add_argument("--image-sets", type=Path, help="folder in which to write asuka and eight_bit instead")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a fiftieth of every set, for tests")
    options = parser.parse_args(arguments)
    share = 50 if options.tiny else 1
    if options.image_sets:
        seeds = IMAGE_SET_SEEDS[: IMAGE_SET_COUNT // share]
        write_image_set(ADVENTURER.name, SUBJECT, seeds, options.image_sets / "asuka")
        write_image_set(PIXEL_ART.name, {}, seeds, options.image_sets / "eight_bit")
        return
    folder = options.work / "drawings"
    folder.mkdir(parents=True, exist_ok=True)
    for style, count in TRAIN_COUNTS.items():
        draw_array(style, HELD_OUT_SEEDS[: HELD_OUT_COUNT // share], folder / f"held-out-{style}.npy", options.processes)
        draw_array(style, TRAIN_SEEDS[: count // share], folder / f"train-{style}.npy", options.processes)


if __name__ == "__main__":
    main()
