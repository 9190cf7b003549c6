"""How numbers are said in messages, and what words stand in a text."""

import re
from collections.abc import Collection

PROGRAM = "sd-merge-lora"
"""The name of this program."""


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 image, 2 images."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def in_place(prompt: str, words: str, token: str) -> str:
    """A prompt with a token in the place of words, wherever these stand as words of their own; in any case of letters."""
    return re.sub(rf"(?<!\w){re.escape(words)}(?!\w)", lambda _: token, prompt, flags=re.IGNORECASE) if words else prompt


def sized(size: float) -> str:
    """A number of bytes: in MB, or in kB where it is less than a hundredth of that."""
    return f"{size / 1e6:.2f} MB" if size >= 1e4 else f"{size / 1e3:.1f} kB"


def has_phrase(text: str, phrase: str) -> bool:
    """Whether a text has a phrase in it, as whole words; letter case does not count."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, flags=re.IGNORECASE) is not None


def refuse_unknown_sets(setting: str, named: Collection[str], there: Collection[str]) -> None:
    """Refuse a setting that names an image set to which no image belongs.

    Raises:
        ValueError: it names one; the message says which there are.
    """
    if strangers := sorted(set(named) - set(there)):
        sets = ", ".join(sorted(set(there) - {""})) or "none"
        raise ValueError(f"{setting}: names {strangers[0]!r}, which is no set of these images; there are: {sets}")
