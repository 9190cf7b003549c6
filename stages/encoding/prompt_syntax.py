r"""Prompts as A1111's web UI reads them: weights, and parts that are embedded apart. Imports no torch.

`(word)` weighs 1.1, `(word:1.3)` what it says, `[word]` 1 / 1.1, each within another times that; `\(` is a parenthesis; BREAK
begins another part (https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features, "Attention/emphasis"). What else
that program reads there is refused by its name, and nothing of it is taken for words.
"""

import re
from dataclasses import dataclass
from typing import Literal

Syntax = Literal["plain", "a1111"]

STEP = 1.1
"""What one pair of parentheses multiplies a weight by, and one of brackets divides it by."""

_NAMED = {
    r"<\s*(lora|lyco|hypernet)\s*:": "what is drawn with is said by the variants (sweep.…, or --lora), not by prompts",
    r"(?<![\w:])embedding:\S": "a word is read where a prompt has its token (sweep.vectors, or --embedding)",
}
"""What names files, in either syntax, with what to do instead."""
_COMPOSED = re.compile(r"(?<!\w)AND(?!\w)")
_BREAK = re.compile(r"\s*(?<!\w)BREAK(?!\w)\s*")
_TOKENS = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*(?=\))|[^()\[\]\\:]+|[\\:]")
_MARKED = re.compile(r"\([^()]*:\s*[+-]?[\d.]+\s*\)|\(\(|\[[^\[\]]+\]|(?<!\w)(?:BREAK|AND)(?!\w)")


@dataclass(frozen=True)
class Fragment:
    """Words of one weight."""

    text: str
    weight: float


def check_prompt(prompt: str, syntax: Syntax) -> str:
    """Refuse what a prompt has that is not read.

    Raises:
        ValueError: it names a file, or what A1111 would read there in another way.
    """
    for pattern, instead in _NAMED.items():
        if found := re.search(pattern, prompt, flags=re.IGNORECASE):
            raise ValueError(f"{prompt!r}: {found[0]}… names a file: {instead}")
    if syntax == "a1111":
        parse(prompt)
    return prompt


def unread_markup(prompt: str) -> str:
    """The first thing in a prompt that A1111 would not read as words; "" if there is none."""
    found = _MARKED.search(prompt)
    return found[0] if found else ""


def words_of(prompt: str) -> str:
    """A prompt in A1111's syntax without its weights: what it says."""
    return " ".join(" ".join(fragment.text for part in parse(prompt) for fragment in part).split())


def parse(prompt: str) -> list[list[Fragment]]:
    """The parts of a prompt that are embedded apart, each in fragments of one weight.

    Raises:
        ValueError: parentheses or brackets do not match, or it has what is not supported.
    """
    if _COMPOSED.search(prompt):
        raise ValueError(f"{prompt!r}: prompts that are composed (AND) are not supported: write one prompt")
    return [_fragments(part, prompt) for part in _BREAK.split(prompt)]


def _fragments(part: str, prompt: str) -> list[Fragment]:
    """Read one part; each open pair has the place where its fragments begin."""
    found: list[Fragment] = []
    opened: list[tuple[str, int]] = []
    weight: float | None = None
    for token in _TOKENS.findall(part):
        if token in ("(", "["):
            opened.append((token, len(found)))
        elif token in (")", "]"):
            if not opened or {"(": ")", "[": "]"}[opened[-1][0]] != token:
                raise ValueError(f"{prompt!r}: has {token} without its other half: write \\{token} for the sign itself")
            kind, first = opened.pop()
            factor = weight if weight is not None else STEP if kind == "(" else 1 / STEP
            found[first:] = [Fragment(each.text, each.weight * factor) for each in found[first:]]
            weight = None
        elif token.startswith(":") and len(token) > 1:
            weight = _weight(token, opened, prompt)
        else:
            found.append(Fragment(token[1:] if len(token) == 2 and token[0] == "\\" else token, 1.0))
            if opened and opened[-1][0] == "[" and ("|" in token or token == ":"):
                raise ValueError(f"{prompt!r}: prompts that change on the way ([from:to:when], [one|other]) are not supported")
    if opened:
        raise ValueError(f"{prompt!r}: has {opened[-1][0]} without its other half: write \\{opened[-1][0]} for the sign itself")
    return _joined(found)


def _weight(token: str, opened: list[tuple[str, int]], prompt: str) -> float:
    weight = float(token[1:])
    if not opened or opened[-1][0] != "(" or weight < 0:
        raise ValueError(f"{prompt!r}: {token}: a weight is 0 or more, and stands at the end of parentheses: (word:1.2)")
    return weight


def _joined(fragments: list[Fragment]) -> list[Fragment]:
    """Neighbours of one weight as one fragment; those without a word are left out."""
    joined: list[Fragment] = []
    for each in fragments:
        if joined and joined[-1].weight == each.weight:
            joined[-1] = Fragment(joined[-1].text + each.text, each.weight)
        else:
            joined.append(each)
    return [Fragment(each.text.strip(), each.weight) for each in joined if each.text.strip()]
