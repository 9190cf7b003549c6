import random

import pytest

from stages.encoding.choices import chosen, has_choices


@pytest.mark.parametrize(
    ("caption", "first"),
    [
        ("asuka, {red | blue} dress", "asuka, red dress"),
        ("{a|b}{c|d}", "ac"),
        ("{a {small|large} hat|nothing}", "a small hat"),
        ("{|a hat}", ""),
        ("no choice", "no choice"),
        ("{braces} and | bars", "{braces} and | bars"),  # words, as they stand
    ],
)
def test_the_first_of_each(caption, first):
    assert chosen(caption) == first
    assert has_choices(caption) == (caption != first)


def test_each_alternative_comes_up():
    draw = random.Random(0)
    drawn = {chosen("{a|{b|c}}", draw) for _ in range(100)}
    assert drawn == {"a", "b", "c"}
