"""Letters in the PNG grids: which font draws a text, what it cannot draw, and where lines break."""

import math
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

NO_CHARACTER = "\U0010ffff"
"""Never assigned to a character (Unicode 23.7), so every font draws its box for a missing one."""
JOINER = "\u200d"
CLINGING = {"Mn", "Me", "Cf", "Sk", "Pe", "Pf", "Po"}
"""Categories that stay with the character before them: accents, joiners, skin tones, closing marks."""

MARKS = "-_/."
"""A word that has to be cut is best cut behind one of these."""


def font_for(text: str, size: int, file: Path | None) -> Font:
    """The font for a text at a size in pixels.

    Args:
        text: what is drawn.
        size: in pixels.
        file: the font of every text. None takes Pillow's own font, which has ASCII and little else; a text with any other
            letter is drawn in DejaVu Sans (Latin, Greek, Cyrillic), which comes with matplotlib.

    Raises:
        OSError: the file is not a font.
    """
    if file is not None or not missing_characters([text], None):
        return _font(file, size)
    return _font(_dejavu(), size)


def missing_characters(texts: Iterable[str], file: Path | None) -> list[str]:
    """The characters that a font has no glyph for, each once, in the order in which they appear; None is Pillow's own font."""
    characters = dict.fromkeys(character for text in texts for character in composed(text) if not character.isspace())
    return [character for character in characters if not _has(file, character)]


def undrawable(texts: Iterable[str], file: Path | None) -> list[str]:
    """The characters that no font of `font_for` has a glyph for, so that the grids would show boxes; each once."""
    if file is not None:
        return missing_characters(texts, file)
    beyond = [text for text in texts if missing_characters([text], None)]
    return missing_characters(beyond, _dejavu()) if beyond else []


def composed(text: str) -> str:
    """A text with a letter and its accents as one character where Unicode has one; fonts draw these better."""
    return unicodedata.normalize("NFC", text)


def wrap(text: str, font: Font, width: int) -> list[str]:
    """Break text into lines of at most `width` pixels.

    Lines end between words, and beside characters of scripts that are written without spaces; a word that is wider than a
    whole line is cut.
    """
    lines = [""]
    for space, part in _parts(composed(text)):
        if lines[-1] and font.getlength(f"{lines[-1]}{space}{part}") > width:
            lines.append(part)
        else:
            lines[-1] += f"{space}{part}"
        while (cut := _fitting(lines[-1], font, width)) < len(lines[-1]):
            lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
    return lines


def widest_part(text: str, font: Font) -> int:
    """Pixels of the widest part of a text that `wrap` keeps whole where it can."""
    return math.ceil(max((font.getlength(part) for _, part in _parts(composed(text))), default=0))


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """The parts of a text that no line break may fall into, each with the space before it."""
    for number, word in enumerate(text.split()):
        start = 0
        for end in range(1, len(word) + 1):
            if end == len(word) or _may_break(word[end - 1], word[end]):
                yield " " if number and not start else "", word[start:end]
                start = end


def _may_break(before: str, after: str) -> bool:
    wide = any(unicodedata.east_asian_width(character) in "WF" for character in (before, after))
    return wide and not _clings(before, after)


def _clings(before: str, after: str) -> bool:
    return before == JOINER or unicodedata.category(after) in CLINGING


def _fitting(line: str, font: Font, width: int) -> int:
    """How many characters of a line fit: at least one with what clings to it, and if possible up to a mark such as a hyphen."""
    if font.getlength(line) <= width:
        return len(line)
    ends = [end for end in range(1, len(line)) if not _clings(line[end - 1], line[end])]
    fitting = [end for end in ends if font.getlength(line[:end]) <= width] or ends[:1] or [len(line)]
    return max((end for end in fitting if line[end - 1] in MARKS), default=fitting[-1])


@cache
def _has(file: Path | None, character: str) -> bool:
    return _picture(file, character) != _picture(file, NO_CHARACTER)


@cache
def _picture(file: Path | None, character: str) -> bytes:
    image = Image.new("1", (64, 64))
    ImageDraw.Draw(image).text((16, 16), character, fill=1, font=_font(file, 24))
    return image.tobytes()


@cache
def _font(file: Path | None, size: int) -> Font:
    if file is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(file, size)
    except OSError as error:
        raise OSError(f"{file}: is not a font that can be read ({error}); give a .ttf or .otf file") from error


@cache
def _dejavu() -> Path:
    import matplotlib  # a quarter of a second, for texts beyond ASCII only

    return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
