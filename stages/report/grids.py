"""Grids of images with headings: as one PNG, and as SVG for print, whose letters any viewer draws in any script."""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageOps

from stages.report.config import GridStyle
from stages.report.lettering import Font, font_for, widest_part, wrap
from stages.report.page_files import data_uri

INK, MUTED, LINE, PAPER = "#16181d", "#6b7280", "#e5e7eb", "#ffffff"
MARGIN, GUTTER, GAP, RADIUS = 40, 28, 4, 10
TITLE, HEADING, SMALL = 34, 22, 17
WIDE, MOST_LARGER = 1800, 2.5
"""Pixels from which on the letters of a grid grow with its width, so that it can be read as a whole; and how far they grow."""
WIDEST_WORD = 200
"""Pixels up to which a column of small pictures is widened for the words of its heading; longer words are cut."""
FAMILIES = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Noto Sans', sans-serif"
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
    return _draw(grid, style, _Pixels).finish()


def svg_grid(grid: Grid, style: GridStyle) -> str:
    """The same as SVG, with the pictures in it; letters stay text."""
    return _draw(grid, style, _Svg).finish()


CanvasOf = TypeVar("CanvasOf", bound="_Canvas")


def _draw(grid: Grid, style: GridStyle, make: "Callable[[int, GridStyle, float], CanvasOf]") -> CanvasOf:
    across = mosaic_columns(max(len(cell) for row in grid.rows for cell in row.cells))
    cell_width = max(_span(across, style.image_size), _heading_width(grid.columns, style))
    lefts = [MARGIN + index * (cell_width + GUTTER) for index in range(len(grid.columns))]
    width = lefts[-1] + cell_width + MARGIN
    canvas = make(width, style, min(MOST_LARGER, max(1.0, width / WIDE)))
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
    return canvas


def mosaic_columns(count: int) -> int:
    """Pictures side by side in a cell of `count` pictures: as square as can be."""
    return max(1, math.ceil(math.sqrt(count)))


def _heading_width(columns: Sequence[Column], style: GridStyle) -> int:
    """Pixels of the widest word in the headings, up to `WIDEST_WORD`: columns of small pictures get wide enough for it."""
    texts = [(text, size) for column in columns for text, size in ((column.title, HEADING), (column.subtitle, SMALL))]
    return min(WIDEST_WORD, max(widest_part(text, font_for(text, size, style.font)) for text, size in texts))


def _span(count: int, size: int) -> int:
    return count * size + max(0, count - 1) * GAP


class _Canvas(ABC):
    """A sheet that grows downwards; what is drawn next begins `y` pixels below its top.

    Attributes:
        width: of the sheet, in pixels.
        larger: the factor on the size of letters.
    """

    def __init__(self, width: int, style: GridStyle, larger: float) -> None:
        self.style, self.width, self.larger = style, width, larger
        self.y = MARGIN

    def line(self, text: str, size: int, colour: str, after: int) -> None:
        """Write text over the whole width, broken where it must be."""
        size = round(size * self.larger)
        font = font_for(text, size, self.style.font)
        for part in wrap(text, font, self.width - 2 * MARGIN):
            self.write(part, MARGIN, self.y, font, size, colour)
            self.y += round(size * 1.3)
        self.y += round(after * self.larger) - round(size * 0.3)

    def column_heading(self, column: Column, left: int, width: int) -> int:
        """Write one column's heading at `y`; returns where it ends."""
        self.bar(left, self.y, width, column.colour)
        bottom = self.y + 18
        for text, size, colour in ((column.title, HEADING, INK), (column.subtitle, SMALL, MUTED)):
            size = round(size * self.larger)
            font = font_for(text, size, self.style.font)
            for part in wrap(text, font, width):
                self.write(part, left, bottom, font, size, colour)
                bottom += round(size * 1.3)
        return bottom

    def mosaic(self, files: Sequence[Path], left: int, across: int) -> None:
        """Put the pictures of a cell below `y`, `across` side by side."""
        step = self.style.image_size + GAP
        for index, file in enumerate(files):
            self.paste(file, left + index % across * step, self.y + index // across * step)

    def strip(self, strip: Strip) -> None:
        """Put as many pictures as fit side by side, under their heading."""
        self.y += 36
        self.rule(self.y)
        self.y += 24
        self.line(strip.title, HEADING, INK, after=14)
        size, room = self.style.image_size, self.width - 2 * MARGIN
        images = strip.images[: max(1, (room + GAP) // (size + GAP))]
        step = min((room - size) / max(1, len(images) - 1), size + 4 * GAP)
        for index, file in enumerate(images):
            self.paste(file, MARGIN + round(index * step), self.y)
        self.y += size

    def picture(self, file: Path) -> Image.Image:
        """A picture at the size of the grid's; of one that is not square the middle is shown, as training takes it."""
        size = self.style.image_size
        with Image.open(file) as image:
            return ImageOps.fit(image.convert("RGB"), (size, size), RESAMPLING[self.style.resampling])

    @abstractmethod
    def write(self, text: str, left: int, top: int, font: Font, size: int, colour: str) -> None:
        """Write one line, its top left corner given."""

    @abstractmethod
    def paste(self, file: Path, left: int, top: int) -> None:
        """Put a picture."""

    @abstractmethod
    def bar(self, left: int, top: int, width: int, colour: str) -> None:
        """Put the bar above a column."""

    @abstractmethod
    def rule(self, top: int) -> None:
        """Put a line across."""


class _Pixels(_Canvas):
    """A sheet of pixels."""

    def __init__(self, width: int, style: GridStyle, larger: float) -> None:
        super().__init__(width, style, larger)
        self.image = Image.new("RGB", (width, MARGIN), PAPER)

    def finish(self) -> Image.Image:
        """The picture, with a margin at its bottom."""
        self._grow(self.y + MARGIN)
        return self.image

    def write(self, text: str, left: int, top: int, font: Font, size: int, colour: str) -> None:
        self._grow(top + 2 * round(font.getbbox(text)[3]))
        ImageDraw.Draw(self.image).text((left, top), text, fill=colour, font=font)

    def paste(self, file: Path, left: int, top: int) -> None:
        size = self.style.image_size
        self._grow(top + size)
        self.image.paste(LINE, (left - 1, top - 1), _rounded_mask(size + 2))  # a hairline around white pictures
        self.image.paste(self.picture(file), (left, top), _rounded_mask(size))

    def bar(self, left: int, top: int, width: int, colour: str) -> None:
        self._grow(top + 8)
        ImageDraw.Draw(self.image).rounded_rectangle((left, top, left + width - 1, top + 5), 3, fill=colour)

    def rule(self, top: int) -> None:
        self._grow(top + 1)
        ImageDraw.Draw(self.image).line((MARGIN, top, self.width - MARGIN, top), fill=LINE, width=2)

    def _grow(self, height: int) -> None:
        if height > self.image.height:
            grown = Image.new("RGB", (self.image.width, height), PAPER)
            grown.paste(self.image, (0, 0))
            self.image = grown


class _Svg(_Canvas):
    """A drawing: pictures are embedded once each, and letters stay text."""

    def __init__(self, width: int, style: GridStyle, larger: float) -> None:
        super().__init__(width, style, larger)
        self.parts: list[str] = []
        self.pictures: dict[Path, str] = {}

    def finish(self) -> str:
        """The document."""
        width, height, side = self.width, self.y + MARGIN, self.style.image_size
        defined = "\n".join(
            f'<image id="{name}" width="{side}" height="{side}" href="{self._address(file)}"/>'
            for file, name in self.pictures.items()
        )
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
        style = f"<style>text{{font-family:{FAMILIES};white-space:pre}}</style>"
        paper = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
        return "\n".join([head, style, f"<defs>{defined}</defs>", paper, *self.parts, "</svg>"]) + "\n"

    def write(self, text: str, left: int, top: int, font: Font, size: int, colour: str) -> None:
        baseline = top + round(size * 0.95)
        self.parts.append(f'<text x="{left}" y="{baseline}" font-size="{size}" fill="{colour}">{escape(text)}</text>')

    def paste(self, file: Path, left: int, top: int) -> None:
        name = self.pictures.setdefault(file, f"p{len(self.pictures)}")
        self.parts.append(f'<use href="#{name}" x="{left}" y="{top}"/>')

    def bar(self, left: int, top: int, width: int, colour: str) -> None:
        self.parts.append(f'<rect x="{left}" y="{top}" width="{width}" height="6" rx="3" fill="{colour}"/>')

    def rule(self, top: int) -> None:
        self.parts.append(f'<path d="M{MARGIN} {top}H{self.width - MARGIN}" stroke="{LINE}" stroke-width="2"/>')

    def _address(self, file: Path) -> str:
        buffer, hard = io.BytesIO(), self.style.resampling == "nearest"
        kind = "png" if hard else "jpeg"
        self.picture(file).save(buffer, kind, quality=92, subsampling=0)
        return data_uri(kind, buffer.getvalue())


@cache
def _rounded_mask(size: int) -> Image.Image:
    scale = 4  # drawn larger and reduced: Pillow's own corners are jagged
    mask = Image.new("L", (size * scale, size * scale), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size * scale - 1, size * scale - 1), RADIUS * scale, fill=255)
    return mask.resize((size, size), Image.Resampling.LANCZOS)
