"""Portraits drawn by DiceBear from words: every image comes with the attributes that are true of it.

A colour word means the same colour in every style, and a drawing is fixed by its style, its seed and the attributes asked for.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, NamedTuple

import dicebear_styles
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

TRAIN_SEEDS = range(0, 1_000_000)
HELD_OUT_SEEDS = range(1_000_000, 1_100_000)
IMAGE_SET_SEEDS = range(2_000_000, 2_010_000)

SIZE = 64
"""The side of every drawing, in pixels."""

HAIR_COLORS = {
    "black": "1c1c22",
    "brown": "8a5527",
    "blond": "f0cf62",
    "red": "c8412b",
    "blue": "2f6fe0",
    "pink": "f58fc0",
    "white": "ececf2",
}
SKINS = {"light": "f2d3b1", "tan": "c98a58", "brown": "5e3420"}
CLOTHES = {"red": "d23c3c", "blue": "2f5fd0", "green": "2f9e55", "yellow": "f2c230", "black": "23232a", "white": "f6f6f6"}
BACKGROUNDS = {
    "white": "fafafa",
    "blue": "7db8f0",
    "green": "8fd694",
    "yellow": "f7dc6f",
    "pink": "f7a8c4",
    "gray": "9a9ea6",
}

# Hair that no training set holds: the twin tails belong to the character alone.
SUBJECT_HAIR = "twin tails"
SUBJECT_VARIANT = "long15"

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair_color": tuple(HAIR_COLORS),
    "hair": ("short", "long"),
    "skin": tuple(SKINS),
    "expression": ("smiling", "serious", "surprised"),
    "glasses": ("no", "yes"),
    "earrings": ("no", "yes"),
    "clothes": tuple(CLOTHES),
    "background": tuple(BACKGROUNDS),
}
JUDGED = ("hair_color", "skin", "glasses", "clothes", "background")
CHANCES = {"glasses": 0.4, "earrings": 0.1}

Options = dict[str, Any]


class Word(NamedTuple):
    """What a word means in one style: component variants to choose from, and options that are fixed."""

    variants: Mapping[str, tuple[str, ...]] = {}
    options: Mapping[str, Any] = {}


@dataclass(frozen=True)
class DrawingStyle:
    """A DiceBear style: its name in captions, and what the words mean in it.

    Attributes:
        name: DiceBear's own.
        caption: what captions call it.
        colors: for each attribute that is a colour, the style's option that takes it.
        words: for each other attribute, its words and what each means in this style.
        variety: components that vary by the seed and that no word names, with their variants.
        fixed: options of every drawing.
    """

    name: str
    caption: str
    colors: Mapping[str, str]
    words: Mapping[str, Mapping[str, Word]]
    variety: Mapping[str, tuple[str, ...]]
    fixed: Mapping[str, Any]

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that are visible in this style."""
        return tuple(name for name in ATTRIBUTES if name in self.colors or name in self.words)


def _numbered(prefix: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{number:02}" for number in numbers)


def _span(prefix: str, last: int, without: tuple[int, ...] = ()) -> tuple[str, ...]:
    return _numbered(prefix, *(number for number in range(1, last + 1) if number not in without))


def _switch(component: str, variants: tuple[str, ...] = ()) -> dict[str, Word]:
    shown = {component: variants} if variants else {}
    option = f"{component}Probability"
    return {"no": Word({}, {option: 0}), "yes": Word(shown, {option: 100})}


ADVENTURER = DrawingStyle(
    name="adventurer",
    caption="anime portrait",
    colors={"hair_color": "hairColor", "skin": "skinColor", "background": "backgroundColor"},
    words={
        # Left out: flowers in the hair, hair over the eyes, nearly bald heads and the subject's twin tails.
        "hair": {
            "short": Word({"hair": _span("short", 19, without=(12, 13, 19))}),
            "long": Word({"hair": _span("long", 26, without=(3, 8, 15, 18, 20, 26))}),
            SUBJECT_HAIR: Word({"hair": (SUBJECT_VARIANT,)}),
        },
        "expression": {
            "smiling": Word({"mouth": _numbered("variant", 1, 5, 23, 25, 26, 27, 28)}),
            "serious": Word({"mouth": _numbered("variant", 4, 9, 10)}),
            "surprised": Word({"mouth": _numbered("variant", 3, 15, 18)}),
        },
        "glasses": _switch("glasses", _numbered("variant", 2, 4, 5)),
        "earrings": _switch("earrings"),
    },
    variety={
        "eyes": _numbered("variant", 1, 2, 5, 10, 12, 15, 16, 20, 22, 24, 25, 26),
        "eyebrows": _numbered("variant", 1, 3, 5, 7, 10, 12),
    },
    fixed={"detailsProbability": 0},
)
MICAH = DrawingStyle(
    name="micah",
    caption="toon portrait",
    colors={"hair_color": "hairColor", "skin": "baseColor", "clothes": "shirtColor", "background": "backgroundColor"},
    words={
        "hair": {
            "short": Word({"hair": ("fonze", "mrT")}),
            "long": Word({"hair": ("full", "pixie", "dannyPhantom")}),
        },
        "expression": {
            "smiling": Word({"mouth": ("laughing", "smile", "smirk")}),
            "serious": Word({"mouth": ("frown", "sad")}),
            "surprised": Word({"mouth": ("surprised",)}),
        },
        "glasses": _switch("glasses"),
        "earrings": _switch("earrings"),
    },
    variety={"eyes": ("eyes", "round", "smiling")},
    fixed={"glassesColor": ["000000"], "earringColor": ["f4d150"], "facialHairProbability": 0},
)
TOON_HEAD = DrawingStyle(
    name="toon-head",
    caption="soft portrait",
    colors={"hair_color": "hairColor", "skin": "skinColor", "clothes": "clothesColor", "background": "backgroundColor"},
    words={
        "hair": {
            "short": Word({"hair": ("sideComed", "spiky", "undercut")}, {"rearHairProbability": 0}),
            "long": Word(
                {"hair": ("bun", "sideComed", "spiky"), "rearHair": ("longStraight", "longWavy", "shoulderHigh")},
                {"rearHairProbability": 100},
            ),
        },
        "expression": {
            "smiling": Word({"mouth": ("laugh", "smile")}),
            "serious": Word({"mouth": ("angry", "sad")}),
            "surprised": Word({"mouth": ("agape",)}),
        },
    },
    variety={},
    fixed={"beardProbability": 0},
)
PERSONAS = DrawingStyle(
    name="personas",
    caption="flat portrait",
    colors={"hair_color": "hairColor", "skin": "skinColor", "clothes": "clothingColor", "background": "backgroundColor"},
    words={
        "hair": {
            "short": Word({"hair": ("curlyHighTop", "fade", "mohawk", "shortCombover", "shortComboverChops")}),
            "long": Word({"hair": ("bobBangs", "bobCut", "extraLong", "long", "sideShave")}),
        },
        "expression": {
            "smiling": Word({"mouth": ("bigSmile", "smile", "smirk")}),
            "serious": Word({"mouth": ("frown",)}),
            "surprised": Word({"mouth": ("surprise",)}),
        },
        "glasses": {"no": Word({"eyes": ("happy", "open", "sleep", "wink")}), "yes": Word({"eyes": ("glasses",)})},
    },
    variety={"clothes": ("rounded", "small", "squared")},
    fixed={"facialHairProbability": 0},
)
PIXEL_ART = DrawingStyle(
    name="pixel-art",
    caption="8-bit illustration",
    colors={"hair_color": "hairColor", "skin": "skinColor", "clothes": "clothingColor", "background": "backgroundColor"},
    words={
        "hair": {"short": Word({"hair": _span("short", 24)}), "long": Word({"hair": _span("long", 21)})},
        "expression": {
            "smiling": Word({"mouth": _span("happy", 13)}),
            "serious": Word({"mouth": _span("sad", 10)}),
        },
        "glasses": _switch("glasses", _span("dark", 7)),
    },
    variety={},
    fixed={"glassesColor": ["191919"], "hatProbability": 0, "beardProbability": 0, "accessoriesProbability": 0},
)
STYLES: dict[str, DrawingStyle] = {style.name: style for style in (ADVENTURER, MICAH, TOON_HEAD, PERSONAS, PIXEL_ART)}
COLOR_TABLES = {"hair_color": HAIR_COLORS, "skin": SKINS, "clothes": CLOTHES, "background": BACKGROUNDS}


def draw(style: str, seed: int, attributes: Mapping[str, str] | None = None) -> tuple[Image.Image, dict[str, str]]:
    """Draw a portrait, 64 pixels square, and say what it shows.

    Attributes not asked for are drawn by the seed; the same style, seed and attributes give the same image.

    Raises:
        ValueError: the style, an attribute or a word is unknown.
    """
    drawing_style = style_named(style)
    rng = Random(f"{style}/{seed}")
    resolved = _resolve(drawing_style, attributes or {}, rng)
    options = _options(drawing_style, resolved, rng) | {"seed": f"{style}-{seed}"}
    svg = Avatar(_definition(style), options).to_string()
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    return image.resize((SIZE, SIZE), Image.Resampling.BOX), resolved


def style_named(style: str) -> DrawingStyle:
    """The style of that DiceBear name.

    Raises:
        ValueError: there is none.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r} is unknown; known are {', '.join(STYLES)}")
    return STYLES[style]


def attribution(style: str) -> dict[str, str]:
    """Title, creator, licence and source of a style, as its own definition states them."""
    meta = _meta(style)
    return {
        "title": meta["source"]["name"],
        "creator": meta["creator"]["name"],
        "licence": meta["license"]["name"],
        "source": meta["source"]["url"],
    }


def caption(
    style_name: str | None,
    attributes: Mapping[str, str],
    rng: Random | None = None,
    attribute_dropout: float = 0.0,
    shuffle_probability: float = 0.0,
) -> str:
    """Comma-separated phrases, as in "anime portrait, red short hair, brown skin, glasses, blue background".

    With an rng each phrase but the style's is dropped with `attribute_dropout`, and the rest are shuffled
    with `shuffle_probability`. No style name gives "a portrait".
    """
    phrases = [phrase for phrase in _phrases(attributes) if rng is None or rng.random() >= attribute_dropout]
    if rng is not None and rng.random() < shuffle_probability:
        rng.shuffle(phrases)
    return ", ".join([style_name or "a portrait", *phrases])


def _phrases(attributes: Mapping[str, str]) -> list[str]:
    hair = [attributes[name] for name in ("hair_color", "hair") if name in attributes]
    phrases = {
        "hair": " ".join([*hair, "hair"]) if hair else "",
        "skin": f"{attributes['skin']} skin" if "skin" in attributes else "",
        "expression": attributes.get("expression", ""),
        "clothes": f"{attributes['clothes']} shirt" if "clothes" in attributes else "",
        "background": f"{attributes['background']} background" if "background" in attributes else "",
    }
    phrases |= {name: name for name in ("glasses", "earrings") if attributes.get(name) == "yes"}
    order = ("hair", "skin", "expression", "glasses", "earrings", "clothes", "background")
    return [phrases[name] for name in order if phrases.get(name)]


def _resolve(style: DrawingStyle, asked: Mapping[str, str], rng: Random) -> dict[str, str]:
    unknown = set(asked) - set(style.attributes)
    if unknown:
        raise ValueError(f"{style.name} does not show {', '.join(sorted(unknown))}; it shows {', '.join(style.attributes)}")
    resolved = {}
    for name in style.attributes:
        known = style.words.get(name) or COLOR_TABLES[name]
        # Drawn even where asked for, so that asking for one attribute leaves the others as they were.
        drawn = _draw_word(name, tuple(word for word in known if word != SUBJECT_HAIR), rng)
        resolved[name] = asked.get(name, drawn)
        if resolved[name] not in known:
            raise ValueError(f"{name}: {resolved[name]!r} is unknown in {style.name}; known are {', '.join(known)}")
    return resolved


def _draw_word(name: str, words: tuple[str, ...], rng: Random) -> str:
    number = rng.random()
    if name in CHANCES:
        return "yes" if number < CHANCES[name] else "no"
    return words[int(number * len(words))]


def _options(style: DrawingStyle, resolved: Mapping[str, str], rng: Random) -> Options:
    options: Options = dict(style.fixed)
    variants = dict(style.variety)
    for name, word in resolved.items():
        if name in style.colors:
            options[style.colors[name]] = [COLOR_TABLES[name][word]]
        else:
            meaning = style.words[name][word]
            options |= meaning.options
            variants |= meaning.variants
    return options | {f"{component}Variant": [rng.choice(choices)] for component, choices in sorted(variants.items())}


@cache
def _definition(style: str) -> Style:
    return Style(_json(style))


@cache
def _meta(style: str) -> dict[str, Any]:
    return _json(style)["meta"]


def _json(style: str) -> dict[str, Any]:
    return json.loads(files(dicebear_styles).joinpath(f"{style}.json").read_text("utf-8"))
