"""What can be seen to be wrong with images and captions before anything is trained on them. Imports no torch."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from stages.encoding.buckets import Size, cover

NAMED = 5
"""How many files a problem names; the others are counted."""


def too_long(kind: Literal["caption", "prompt"], token_counts: Mapping[str, int], limit: int) -> list[str]:
    """The line on texts that the text encoder does not read to their end; none if it reads them all.

    Args:
        kind: what the texts are.
        token_counts: tokens, begin and end included, by what names a text: a file, or the prompt itself.
        limit: tokens that the text encoder reads.
    """
    cut = [f"{name} ({tokens})" for name, tokens in token_counts.items() if tokens > limit]
    what = f"more than {limit} tokens; the rest is cut off"
    return _line(cut, f"{kind} has {what}", f"{kind}s have {what}")


def caption_problems(captions: Mapping[str, str], token_counts: Sequence[int], limit: int) -> list[str]:
    """Captions that are cut off, are empty, or say the same as others, by the names of their images.

    Args:
        captions: by file name.
        token_counts: of each caption, begin and end included.
        limit: tokens that the text encoder reads.
    """
    empty = [name for name, caption in captions.items() if not caption.strip()]
    times = Counter(caption for caption in captions.values() if caption.strip())
    same = [f"{count} times “{caption}”" for caption, count in times.most_common() if count > 1]
    several = "of several images, which cannot be told apart by"
    return [
        *too_long("caption", dict(zip(captions, token_counts, strict=True)), limit),
        *_line(empty, "caption is empty", "captions are empty"),
        *_line(same, f"caption is {several} it", f"captions are {several} them"),
    ]


def size_problems(images: Mapping[str, Size], targets: Mapping[str, Size]) -> list[str]:
    """Images that are enlarged to the size they are trained at, which blurs them."""
    sizes = ((name, size, targets[name]) for name, size in images.items())
    small = [f"{name} ({size[0]}x{size[1]})" for name, size, target in sizes if cover(size, target)[0] > size[0]]
    return _line(
        small,
        "image is smaller than it is trained at, and is enlarged, which blurs it",
        "images are smaller than they are trained at, and are enlarged, which blurs them",
    )


def say_problems(problems: Iterable[str]) -> None:
    """Print each as a warning on stderr."""
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr, flush=True)


def _line(found: Sequence[str], one: str, many: str) -> list[str]:
    """How many are found, what is wrong with one or many of them, and the first by name; no line if there are none."""
    if not found:
        return []
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return [f"{len(found)} {one if len(found) == 1 else many}: {', '.join(found[:NAMED])}{more}"]
