"""Choices in captions: {a|b} is one of both, as kohya's wildcards and dynamic prompts have it. Imports no torch."""

import random
import re

CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")
"""Innermost braces with a bar in them; braces without one are words."""


def has_choices(caption: str) -> bool:
    """Whether a caption is another each time."""
    return CHOICE.search(caption) is not None


def chosen(caption: str, draw: random.Random | None = None) -> str:
    """A caption with one of the alternatives in the place of each choice, inner ones first.

    Args:
        caption: with choices or without.
        draw: of the alternatives; None takes the first of each.
    """
    while found := CHOICE.search(caption):
        alternatives = found[1].split("|")
        one = alternatives[0] if draw is None else draw.choice(alternatives)
        caption = caption[: found.start()] + one.strip() + caption[found.end() :]
    return caption
