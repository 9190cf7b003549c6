"""How the report's page does with many images: time to the first content, time of a filter, memory, size.

    python benchmarks/page.py                     # 1,000 and 10,000 cells
    python benchmarks/page.py --cells 1000 --chromium /usr/bin/chromium

A made-up experiment of 5 alphas, 5 ranks, 8 prompts and 5 seeds, and one of ten times as many prompts, with noise of 512 pixels
as images, is written as the stage compare writes it and opened from the disk in a headless Chromium. In brackets the peer: the
same page with every original in place of its thumbnail, as the grids of other programs load them.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from stages.drawing.cells import Cell  # noqa: E402
from stages.drawing.image_files import write_image  # noqa: E402
from stages.measures.embedded_files import Embedded  # noqa: E402
from stages.report.report import write_report  # noqa: E402
from tests.report import small_comparison  # noqa: E402
from tests.report.browser import CHROMIUM  # noqa: E402

SIDE, POOL = 512, 8
ALPHAS, RANKS, SEEDS = (0.7, 0.1, 0.3, 0.5, 0.9), (4, 1, 2, 8, 16), [0, 1, 2, 3, 4]
REPEATS = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Write, open, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10000], help="how many images, about")
    parser.add_argument("--chromium", default=CHROMIUM, help="the browser")
    options = parser.parse_args(argv)
    columns = ("images", "page, MB", "written in, s", "first content, s", "ready, s", "filter, ms", "layout, ms", "memory, MB")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for cells in options.cells:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Path(folder), cells, options.chromium)
        print(f"| {' | '.join(row)} |", flush=True)


def measure(root: Path, cells: int, chromium: str) -> list[str]:
    """A row of the table, and one of the peer in brackets."""
    written, count, report = make_report(root, cells)
    page = report / "index.html"
    ours = browse(page, chromium)
    peer = report / "originals.html"
    peer.write_text(
        re.sub(r'src="thumbnails/(images/[^"]+)\.webp"', r'src="\1"', page.read_text(encoding="utf-8")), encoding="utf-8"
    )
    theirs = browse(peer, chromium)
    pairs = [f"{a:.{digits}f} ({b:.{digits}f})" for a, b, digits in zip(ours, theirs, (2, 2, 0, 0, 0), strict=True)]
    return [f"{count:,}", f"{page.stat().st_size / 1e6:.1f}", f"{written:.0f}", *pairs]


def make_report(root: Path, cells: int) -> tuple[float, int, Path]:
    """Write a made-up experiment and its report: the seconds that the report took, how many images, its folder."""
    sweep = replace(small_comparison.SWEEP, alpha=ALPHAS, rank=RANKS, dreambooth_rank=(), bases=())
    variants = len(sweep.variants)
    prompts = max(2, round(cells / variants / len(SEEDS)))
    world: Any = small_comparison
    world.SUBJECT_PROMPTS = [f"asuka, number {number}" for number in range(prompts // 2)]
    world.OTHER_PROMPTS = [f"a portrait, number {number}" for number in range(prompts - prompts // 2)]
    world.SEEDS = SEEDS
    world.embed_cells = _embed
    small_comparison.write_world(root, sweep)
    random = np.random.default_rng(0)
    pool = [Image.fromarray(random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(POOL)]
    files = sorted((root / "images").glob("*/*.png"))
    sources = [root / f"pool-{number}.png" for number in range(POOL)]
    for image, source in zip(pool, sources, strict=True):
        write_image(image.resize((64, 64)).resize((SIDE, SIDE)), source, {"prompt": "x"})
    for number, file in enumerate(files):
        file.unlink()
        os.link(sources[number % POOL], file)
    (root / "report").mkdir()
    began = time.perf_counter()
    write_report(small_comparison.read_world(root, sweep), root / "report")
    return time.perf_counter() - began, len(files), root / "report"


def _embed(of_cells: list[Cell], likenesses: list[float], alignments: list[float]) -> Embedded:
    """Embeddings of length 1 with some cosine to the subject, and to the prompts, which are all alike."""
    rows = np.zeros((len(of_cells), 20), dtype=np.float32)
    rows[:, 0], rows[:, 1] = np.mod(likenesses, 0.6), np.mod(alignments, 0.6)
    for row, cell in zip(rows, of_cells, strict=True):
        row[10 + cell.seed] = np.sqrt(1 - row[0] ** 2 - row[1] ** 2)
    prompts = list(dict.fromkeys(cell.prompt for cell in of_cells))
    texts = np.tile(np.eye(20, dtype=np.float32)[1], (len(prompts), 1))
    names = [cell.file_name for cell in of_cells]
    return Embedded({"clip": rows, "dino": rows}, texts, names, ["00"] * len(names), prompts, {"clip": "c", "dino": "d"}, "")


def browse(page: Path, chromium: str) -> tuple[float, float, float, float, float]:
    """Seconds to the first content, and until the script has run; milliseconds of a filter and of a new layout; megabytes."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        firsts, filters, layouts, memories, readies = [], [], [], [], []
        for _ in range(REPEATS):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.as_uri())
            tab.wait_for_timeout(500)
            paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            firsts.append(tab.evaluate(paint) / 1000)
            readies.append(tab.evaluate("performance.timing.domContentLoadedEventEnd - performance.timing.responseEnd") / 1000)
            filters.append(tab.evaluate(TIMED, ["choose-words", "number 1"]))
            tab.evaluate(TIMED, ["choose-words", ""])
            layouts.append(tab.evaluate(TIMED, ["choose-columns", "rank"]))
            memories.append(_memory())
            tab.close()
        browser.close()
    return tuple(statistics.median(values) for values in (firsts, readies, filters, layouts, memories))  # pyright: ignore


TIMED = """([id, value]) => new Promise(done => {
  const input = document.getElementById(id), began = performance.now();
  input.value = value;
  input.dispatchEvent(new Event("input", {bubbles: true}));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
})"""
"""Changes a field, and gives the milliseconds until the next picture is on the screen."""


def _memory() -> float:
    """Megabytes of the largest process below this one: that of the page."""
    sizes = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "--type=renderer" in process.cmdline():
                sizes.append(process.memory_full_info().uss)
        except psutil.Error:
            continue
    return max(sizes, default=0) / 1e6


if __name__ == "__main__":
    main()
