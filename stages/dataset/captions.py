"""Editing of captions: what a caption names, and what it leaves to the trigger word.

A LoRA binds what a caption names to those words, and what no caption names to the words that every caption has. To teach
a character by a name, put the name in front of every caption and drop the phrases that describe what never changes about
it: with "asuka, red twin tails hair, smile" the shape of the hair goes to "asuka" but its colour to "red"; with
"asuka, smile" the name takes both. Phrases for what varies (expression, clothes, background) stay in.

A phrase is what stands between commas; a sentence without commas, as captioners of photographs write it, is one phrase.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from stages.dataset.config import CaptionEditsConfig
from stages.pipeline.wording import has_phrase

TOKEN_LIMIT = 77
"""Positions of Stable Diffusion's CLIP text encoder, the begin and the end token included."""


def split_phrases(caption: str) -> list[str]:
    """The phrases of a caption, without the spaces that a WordPiece decoder leaves around hyphens and apostrophes."""
    tidy = re.sub(r"(?<=\w)\s*([-'’])\s*(?=\w)", r"\1", caption)
    phrases = (" ".join(phrase.split()).rstrip(" .") for phrase in tidy.split(","))
    return [phrase for phrase in phrases if phrase]


def distinct_phrases(phrases: Iterable[str]) -> list[str]:
    """The phrases without those that came before; letter case does not count."""
    return list({phrase.casefold(): phrase for phrase in reversed([*phrases])}.values())[::-1]


def drop_phrases(phrases: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The phrases that match none of the shell patterns, such as "*hair*"; letter case does not count."""
    lowered = [pattern.casefold() for pattern in patterns]
    return [phrase for phrase in phrases if not any(fnmatchcase(phrase.casefold(), pattern) for pattern in lowered)]


def common_phrases(captions: Sequence[Sequence[str]], share: float) -> set[str]:
    """The phrases, in lower case, that stand in at least this share (0, 1] of the captions ("tag pruning")."""
    counts = Counter(phrase for phrases in captions for phrase in {phrase.casefold() for phrase in phrases})
    return {phrase for phrase, count in counts.items() if count >= share * len(captions)}


def edit_captions(captions: Sequence[str], config: CaptionEditsConfig, sets: Sequence[str] = ()) -> list[str]:
    """Turn a captioner's captions into training captions.

    Args:
        captions: as the captioner wrote them.
        config: what to do to them.
        sets: the name of the image set of each; () where there are none.

    Returns:
        As many captions, phrases joined by ", ", no phrase twice. One with no phrase left is "".
    """
    kept = [drop_phrases(split_phrases(caption), config.drop_phrases) for caption in captions]
    common = common_phrases(kept, config.drop_common_phrases) if config.drop_common_phrases is not None else set()
    fronts = [split_phrases(config.prefix_of(name)) for name in sets or [""] * len(captions)]
    back = split_phrases(config.suffix or "")
    pruned = ([phrase for phrase in phrases if phrase.casefold() not in common] for phrases in kept)
    return [", ".join(distinct_phrases([*front, *phrases, *back])) for front, phrases in zip(fronts, pruned, strict=True)]


def complete_caption(caption: str, config: CaptionEditsConfig, image_set: str = "") -> str:
    """A caption that a user wrote, as it is, with those phrases of prefix and suffix that it does not hold yet.

    A phrase is held where its words stand, also inside of another phrase: "a photo of asuka" holds "asuka".
    """
    front = [phrase for phrase in split_phrases(config.prefix_of(image_set)) if not has_phrase(caption, phrase)]
    back = [phrase for phrase in split_phrases(config.suffix or "") if not has_phrase(caption, phrase)]
    return ", ".join([*front, caption, *back])


def likely_tokens(caption: str) -> int:
    """A guess of how many tokens CLIP makes of a caption: words and marks, begin and end; seldom fewer in truth."""
    return len(re.findall(r"\w+|[^\w\s]", caption)) + 2
