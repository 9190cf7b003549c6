"""Patterns that name layers of a model, as PEFT's `rank_pattern` and `alpha_pattern` have them."""

import math
import re
from collections.abc import Iterable
from functools import cache

MOST_WAYS = 10**7
"""The most ways of matching a name that the patterns of a file may have together: some hundredths of a second."""
_SINGLE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]?", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_GROUP = re.compile(r"\((?:\?(?:[:=!]|<[=!]|P<\w+>)|(?!\?))([^()]*)\)")
_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d*,?\d*\})[?+]?")
_DEEPEST = 20


def first_pattern(patterns: Iterable[str], module: str) -> str | None:
    """The pattern that PEFT takes for a layer: the first one that stands for the end of its name."""
    return next((pattern for pattern in patterns if _end_of_name(pattern).match(module)), None)


@cache
def _end_of_name(pattern: str) -> re.Pattern[str]:
    """The pattern as PEFT compiles it. Cached here, because `re` keeps 512 and a file may have more, one for each layer."""
    return re.compile(rf"(.*\.)?({pattern})$")


def check_patterns(patterns: Iterable[str], longest: int) -> None:
    """Refuse patterns that are no regular expressions, or that could keep `first_pattern` busy for hours.

    Python's `re` may try every way in which a pattern can match a name, and for a repeated group their number grows
    exponentially with the name's length.

    Args:
        patterns: Regular expressions, such as PEFT's `rank_pattern` holds them.
        longest: How many characters the longest name has.

    Raises:
        ValueError: The message shows the pattern.
    """
    ways = 0.0
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{pattern[:60]!r} is no regular expression: {error}") from error
        ways += _ways(pattern, longest)
        if ways > MOST_WAYS:
            raise ValueError(f"{pattern[:60]!r} takes too long: repeat no group, and write fewer * and +, or whole names")


def _ways(pattern: str, longest: int) -> float:
    """An upper bound of the ways in which `re` may try to match a name: branches of groups, times lengths of repetitions."""
    plain, ways = _SINGLE.sub("x", pattern), 1
    if _REPEATED_GROUP.search(plain):
        return math.inf
    for _ in range(_DEEPEST):  # from the innermost groups outwards
        for group in _GROUP.finditer(plain):
            ways *= 1 + group[1].count("|")
        plain = _GROUP.sub(lambda group: f" {group[1].replace('|', ' ')} ", plain)
    repeated = len(_QUANTIFIER.findall(plain))
    if "(" in plain:  # nested too deeply, or of a kind that is not counted here
        return math.inf
    return ways * (1 + plain.count("|")) * math.comb(longest + repeated, repeated)
