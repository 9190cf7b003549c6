"""Texts of others in our messages: names, values and keys out of files, cut to what fits in a line."""

_SHOWN = 100
_SHOWN_OF_KEY = 200
_LISTED_KEYS = 8


def one_line(text: object) -> str:
    """A foreign text for an error message, without line breaks and what else a terminal would follow."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(str(text).split()))


def shown(value: object) -> str:
    """The beginning of a foreign value, in one line."""
    return one_line(value)[:_SHOWN]


def listed(keys: list[str]) -> str:
    """Keys for an error message: the first few, and how many more."""
    more = f" and {len(keys) - _LISTED_KEYS} more" if len(keys) > _LISTED_KEYS else ""
    return ", ".join(key[:_SHOWN_OF_KEY] for key in keys[:_LISTED_KEYS]) + more
