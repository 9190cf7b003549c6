"""From captions to attributes, and attributes changed or left out, as the captions that models are trained on need them."""

from collections.abc import Mapping, Sequence
from random import Random

from stages.mini.drawings.portraits import ATTRIBUTES, STYLES, SUBJECT_HAIR

NOUNS = {"skin": "skin", "shirt": "clothes", "background": "background"}
WHOLE, KEPT = 0.75, 0.8


def attributes_named(text: str) -> dict[str, str]:
    """The style and the attributes that a caption names; glasses and earrings that it does not name are "no"."""
    phrases = [" ".join(phrase.replace(" - ", "-").split()) for phrase in text.split(",")]
    named: dict[str, str] = {"glasses": "no", "earrings": "no"}
    styles = {style.caption: name for name, style in STYLES.items()}
    for phrase in phrases:
        first, _, last = phrase.rpartition(" ")
        if phrase in styles:
            named["style"] = styles[phrase]
        elif phrase in named:
            named[phrase] = "yes"
        elif phrase in ATTRIBUTES["expression"]:
            named["expression"] = phrase
        elif last in NOUNS:
            named[NOUNS[last]] = first
        elif last == "hair":
            named |= _hair(first)
    return named


def _hair(words: str) -> dict[str, str]:
    shapes = [shape for shape in (*ATTRIBUTES["hair"], SUBJECT_HAIR) if words.endswith(shape)]
    colors = [color for color in ATTRIBUTES["hair_color"] if words.startswith(color)]
    return {name: found[0] for name, found in (("hair", shapes), ("hair_color", colors)) if found}


def changed(style: str, attributes: Mapping[str, str], rng: Random, among: Sequence[str] | None = None) -> dict[str, str]:
    """A near miss: the attributes, one of them (of all, or of `among`) with another word that the style can draw."""
    known = {name: words for name in attributes if len(words := words_of(style, name)) > 1}
    name = rng.choice(sorted(set(known) & set(among if among is not None else known)))
    word = rng.choice([word for word in known[name] if word != attributes[name]])
    return {**attributes, name: word}


def words_of(style: str, name: str) -> tuple[str, ...]:
    """The words that an attribute can have in a style, without the subject's twin tails."""
    words = STYLES[style].words.get(name) or ATTRIBUTES[name]
    return tuple(word for word in words if word != SUBJECT_HAIR)


def varied(style: str, attributes: Mapping[str, str], rng: Random) -> tuple[str | None, dict[str, str]]:
    """The style's name, or None, and the attributes that a caption is made of: mostly all of them, otherwise a random part.

    Users' prompts do not name everything either.
    """
    if rng.random() < WHOLE:
        return STYLES[style].caption, dict(attributes)
    kept = {name: word for name, word in attributes.items() if rng.random() < KEPT}
    return (STYLES[style].caption if rng.random() < 0.5 else None), kept or dict(attributes)
