"""Grids of images with headings, as one PNG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from stages.report.config import GridStyle
from stages.report.lettering import Font, font_for, widest_part, wrap

INK, MUTED, LINE, PAPER = "#16181d", "#6b7280", "#e5e7eb", "#ffffff"
MARGIN, GUTTER, GAP, RADIUS = 40, 28, 4, 10
TITLE, HEADING, SMALL = 34, 22, 17
WIDEST_WORD = 200
"""Pixels up to which a column of small pictures is widened for the words of its heading; longer words are cut."""
RESAMPLING = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


@dataclass(frozen=True)
class Column:
    """Heading of a column, and the colour of the bar above it."""

    title: str
    subtitle: str
    colour: str


@dataclass(frozen=True)
class Row:
    """Heading of a row, and the pictures of its cells, column by column; a cell without pictures stays empty."""

    title: str
    cells: Sequence[Sequence[Path]]


@dataclass(frozen=True)
class Strip:
    """Pictures side by side under the grid, with a heading."""

    title: str
    images: Sequence[Path]


@dataclass(frozen=True)
class Grid:
    """What a grid shows: a title, headings of columns, rows of cells, and perhaps a strip of pictures at the bottom."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    strip: Strip | None = None

    @property
    def texts(self) -> list[str]:
        """All that is written in it."""
        headings = [text for column in self.columns for text in (column.title, column.subtitle)]
        return [self.title, *headings, *(row.title for row in self.rows), *([self.strip.title] if self.strip else [])]


def draw_grid(grid: Grid, style: GridStyle) -> Image.Image:
    """Draw a grid: headings on top, each row under its own heading, and a strip of pictures at the bottom."""
    across = mosaic_columns(max(len(cell) for row in grid.rows for cell in row.cells))
    cell_width = max(_span(across, style.image_size), _heading_width(grid.columns, style))
    lefts = [MARGIN + index * (cell_width + GUTTER) for index in range(len(grid.columns))]
    canvas = _Canvas(lefts[-1] + cell_width + MARGIN, style)
    canvas.line(grid.title, TITLE, INK, after=34)
    canvas.y = max(canvas.column_heading(column, left, cell_width) for column, left in zip(grid.columns, lefts, strict=True))
    for row in grid.rows:
        canvas.y += 24
        canvas.line(row.title, HEADING, INK, after=14)
        for cell, left in zip(row.cells, lefts, strict=True):
            canvas.mosaic(cell, left, across)
        canvas.y += max(_span(math.ceil(len(cell) / across), style.image_size) for cell in row.cells)
    if grid.strip is not None and grid.strip.images:
        canvas.strip(grid.strip)
    return canvas.finish()


def mosaic_columns(count: int) -> int:
    """Pictures side by side in a cell of `count` pictures: as square as can be."""
    return max(1, math.ceil(math.sqrt(count)))


def _heading_width(columns: Sequence[Column], style: GridStyle) -> int:
    """Pixels of the widest word in the headings, up to `WIDEST_WORD`: columns of small pictures get wide enough for it."""
    texts = [(text, size) for column in columns for text, size in ((column.title, HEADING), (column.subtitle, SMALL))]
    return min(WIDEST_WORD, max(widest_part(text, font_for(text, size, style.font)) for text, size in texts))


def _span(count: int, size: int) -> int:
    return count * size + max(0, count - 1) * GAP


class _Canvas:
    """A picture that grows downwards; what is drawn next begins `y` pixels below its top."""

    def __init__(self, width: int, style: GridStyle) -> None:
        self.style = style
        self.image = Image.new("RGB", (width, MARGIN), PAPER)
        self.y = MARGIN

    def line(self, text: str, size: int, colour: str, after: int) -> None:
        """Write text over the whole width, broken where it must be."""
        font = font_for(text, size, self.style.font)
        for part in wrap(text, font, self.image.width - 2 * MARGIN):
            self._write(part, MARGIN, self.y, font, colour)
            self.y += round(size * 1.3)
        self.y += after - round(size * 0.3)

    def column_heading(self, column: Column, left: int, width: int) -> int:
        """Write one column's heading at `y`; returns where it ends."""
        self._grow(self.y + 8)
        ImageDraw.Draw(self.image).rounded_rectangle((left, self.y, left + width - 1, self.y + 5), 3, fill=column.colour)
        bottom = self.y + 18
        for text, size, colour in ((column.title, HEADING, INK), (column.subtitle, SMALL, MUTED)):
            font = font_for(text, size, self.style.font)
            for part in wrap(text, font, width):
                self._write(part, left, bottom, font, colour)
                bottom += round(size * 1.3)
        return bottom

    def mosaic(self, files: Sequence[Path], left: int, across: int) -> None:
        """Paste the pictures of a cell below `y`, `across` side by side."""
        step = self.style.image_size + GAP
        for index, file in enumerate(files):
            self._paste(file, left + index % across * step, self.y + index // across * step)

    def strip(self, strip: Strip) -> None:
        """Paste as many pictures as fit side by side, under their heading."""
        self.y += 36
        self._grow(self.y + 1)
        ImageDraw.Draw(self.image).line((MARGIN, self.y, self.image.width - MARGIN, self.y), fill=LINE, width=2)
        self.y += 24
        self.line(strip.title, HEADING, INK, after=14)
        size, room = self.style.image_size, self.image.width - 2 * MARGIN
        images = strip.images[: max(1, (room + GAP) // (size + GAP))]
        step = min((room - size) / max(1, len(images) - 1), size + 4 * GAP)
        for index, file in enumerate(images):
            self._paste(file, MARGIN + round(index * step), self.y)
        self.y += size

    def finish(self) -> Image.Image:
        """The picture, with a margin at its bottom."""
        self._grow(self.y + MARGIN)
        return self.image

    def _paste(self, file: Path, left: int, top: int) -> None:
        """Paste a picture; of one that is not square the middle is shown, as training takes it."""
        size = self.style.image_size
        with Image.open(file) as image:
            picture = ImageOps.fit(image.convert("RGB"), (size, size), RESAMPLING[self.style.resampling])
        self._grow(top + size)
        self.image.paste(LINE, (left - 1, top - 1), _rounded_mask(size + 2))  # a hairline around white pictures
        self.image.paste(picture, (left, top), _rounded_mask(size))

    def _write(self, text: str, left: int, top: int, font: Font, colour: str) -> None:
        self._grow(top + 2 * round(font.getbbox(text)[3]))
        ImageDraw.Draw(self.image).text((left, top), text, fill=colour, font=font)

    def _grow(self, height: int) -> None:
        if height > self.image.height:
            grown = Image.new("RGB", (self.image.width, height), PAPER)
            grown.paste(self.image, (0, 0))
            self.image = grown


@cache
def _rounded_mask(size: int) -> Image.Image:
    scale = 4  # drawn larger and reduced: Pillow's own corners are jagged
    mask = Image.new("L", (size * scale, size * scale), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size * scale - 1, size * scale - 1), RADIUS * scale, fill=255)
    return mask.resize((size, size), Image.Resampling.LANCZOS)
