"""What the comparison found: the declared contrasts, the trends, the best of a sweep, and all of it in sentences.

The page, the tables, the end of `make repro` and the comments on pull requests all take their words from here, and these from
the numbers alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log2
from typing import Literal

from stages.measures.comparing import BY_KEY, Contrast, Declared, Selection, compare, halves, select
from stages.measures.statistics import Interval
from stages.pipeline.variants import Kind, Variant
from stages.pipeline.wording import counted
from stages.report.naming import Namer
from stages.report.results import Results

SAYS_NOTHING_BESIDE_THE_MERGE = ("drift", "copying", "diversity")
"""The merge does not drift from itself; and images of one subject are nearer to its images, and to one another."""
TREND = 3
"""From so many ranks on, a trend is looked for."""
Tone = Literal["", "good", "harm"]
Sentence = tuple[tuple[str, Tone], ...]
"""A sentence in parts, each with what its colour says: that something is good, that it is harm, or nothing."""
TONES: dict[str, Tone] = {"better": "good", "worse": "harm"}


@dataclass(frozen=True)
class Findings:
    """All that is said of the results.

    Attributes:
        results: what was measured.
        namer: what the variants are called.
        primary: the measure that matters most, a key of `comparing.BY_KEY`.
        pairs: the kinds that are compared, the first against the second; the first pair is the main one.
    """

    results: Results
    namer: Namer
    primary: str
    pairs: Sequence[tuple[Kind, Kind]]

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """All declared differences by all measures, corrected together."""
        return compare(self._declared(), self.results.asks, len(self.results.seeds), self.primary)

    def of(self, first: Variant, second: Variant) -> dict[str, Contrast]:
        """The contrasts of two variants, by the keys of their measures; none where they are not declared."""
        names = (self.namer.arm(first), self.namer.arm(second))
        return {each.measure.key: each for each in self.contrasts if each.names == names}

    def _declared(self) -> list[Declared]:
        sweep, results = self.results.sweep, self.results
        leading = {variant.kind: variant for variant in sweep.leading}
        pairs = [(leading[one], leading[other]) for one, other in self.pairs if one in leading and other in leading]
        declared = [
            Declared(
                (self.namer.arm(one), self.namer.arm(other)),
                (results.arm(one), results.arm(other)),
                without=SAYS_NOTHING_BESIDE_THE_MERGE if "merge" in (one.kind, other.kind) else (),
            )
            for one, other in pairs
        ]
        for kind in sweep.kinds:
            ranked = sweep.ranked(kind)
            if len(ranked) >= TREND:
                names = tuple(self.namer.arm(variant) for variant in ranked)
                x = tuple(log2(variant.rank or 1) for variant in ranked)
                declared.append(Declared(names, [results.arm(variant) for variant in ranked], x))
        return declared

    @cached_property
    def selections(self) -> dict[Kind, Selection]:
        """The best LoRA of each kind that has several, chosen by the primary measure."""
        measure, results = BY_KEY[self.primary], self.results
        even, odd = halves(len(results.seeds))
        found: dict[Kind, Selection] = {}
        for kind in results.sweep.kinds if odd.any() else ():
            candidates = {
                self.namer.arm(first): (results.values(first, measure.metric, even), results.values(first, measure.metric, odd))
                for first in results.sweep.candidates(kind)
            }
            if selection := select(candidates, results.asks, measure):
                found[kind] = selection
        return found

    @property
    def sentences(self) -> list[str]:
        """The answer: the main contrast by the primary measure, what else is told apart, and what cannot be said."""
        return list(map(plain, self.marked))

    @property
    def marked(self) -> list[Sentence]:
        """The same sentences, in parts that say what is good and what is harm."""
        plain: list[Sentence] = [((sentence, ""),) for sentence in (*self._selected(), *self.limits)]
        return [*self._main(), *self._told_apart(), *plain]

    @property
    def limits(self) -> list[str]:
        """What cannot be said: the units, the smallest difference that would show, what likeness is measured to."""
        return list(self._limits())

    @property
    def question(self) -> str:
        """What was declared to matter most, as a question; what was compared, where there is no such pair."""
        main = next((contrast for contrast in self.contrasts if contrast.primary), None)
        if main is None:
            return "What was found"
        return f"{' or '.join(main.names)}: which is better by the {main.measure.name}?"

    def _main(self) -> Iterator[Sentence]:
        for contrast in self.contrasts:
            if contrast.primary:
                yield (("The question declared beforehand: ", ""), *say(contrast))

    def _told_apart(self) -> Iterator[Sentence]:
        """A sentence for each pair and each trend, the main question left out."""
        for names in dict.fromkeys(contrast.names for contrast in self.contrasts):
            tested = [
                contrast
                for contrast in self.contrasts
                if contrast.names == names and not contrast.primary and contrast.adjusted_p is not None
            ]
            if tested:
                yield _together(tested)

    def _selected(self) -> Iterator[str]:
        for kind, selection in self.selections.items():
            flattered = selection.measure.wanted * (selection.flattering - selection.reported.mean)
            yield (
                f"Of {len(selection.names)} {self.namer.names.of(kind)}s, {selection.chosen} is best by the "
                f"{selection.measure.name}: {number(selection.flattering)} on the half of the prompts and seeds that it was "
                f"chosen on, {interval(selection.reported)} on the other half: its own half flatters it by {signed(flattered)}."
            )

    def _limits(self) -> Iterator[str]:
        trainings, prompts = len(self.results.sweep.seed), self._prompts()
        if trainings == 1:
            yield (
                f"The units are {prompts}. With one training of each LoRA this holds for these files, and says nothing about "
                "the methods: another training seed may differ by more."
            )
        else:
            yield (
                f"The units are {trainings} trainings of each LoRA, each the mean of {prompts}: this holds for other trainings "
                "by these methods, with these prompts."
            )
        main = next((contrast.interval for contrast in self.contrasts if contrast.primary), None)
        if main is not None and main.detectable is not None:
            yield (
                "The smallest difference in the main question that so many units would show, four times in five: "
                f"{number(main.detectable)}. Intervals are Student's 95 % intervals; verdicts are corrected for "
                f"{counted(len(self.contrasts), 'comparison')} (Holm): all false ones together are as rare as one in twenty."
            )
        if not self.results.dataset.held_out:
            yield (
                "No image was held out (download.held_out_images is 0): likeness is to the training images themselves, where a "
                "mere copy scores best."
            )

    def _prompts(self) -> str:
        """How many prompts of each list there are, and how many seeds, in words."""
        verbs = {"subject": ("asks for the subject", "ask for the subject"), "other": ("does not", "do not")}
        parts = [
            f"{counted(len(prompts), 'prompt')} that {verbs[group][len(prompts) > 1]}"
            for group, prompts in self.results.groups.items()
        ]
        return f"{' and '.join(parts)}, each the mean of {counted(len(self.results.seeds), 'seed')}"


def plain(sentence: Sentence) -> str:
    """A sentence without colours."""
    return "".join(text for text, _ in sentence)


def say(contrast: Contrast) -> Sentence:
    """A contrast in a sentence, with its interval."""
    name, found = contrast.measure.name, interval(contrast.interval, signed)
    subject = f"{_subject(contrast)}: "
    if contrast.adjusted_p is None:
        return ((f"{subject}{name} {found}; one unit gives no interval.", ""),)
    if not contrast.told_apart:
        return ((f"{subject}not told apart by the {name}: {found}.", ""),)
    return ((subject, ""), (f"{contrast.verdict} by the {name}: {found}", TONES[contrast.verdict]), (".", ""))


def _together(contrasts: Sequence[Contrast]) -> Sentence:
    """All contrasts of a pair, or of a trend, in one sentence."""
    parts: list[tuple[str, Tone]] = []
    for verdict, tone in TONES.items():
        found = [f"the {each.measure.name}, {interval(each.interval, signed)}" for each in contrasts if each.verdict == verdict]
        if found:
            parts.append((f"{verdict} by {'; by '.join(found)}", tone))
    if left := [each for each in contrasts if not each.told_apart]:
        parts.append((f"not told apart by {counted(len(left), 'other measure' if parts else 'measure')}", ""))
    spans: list[tuple[str, Tone]] = [(f"{_subject(contrasts[0])}: ", "")]
    for at, (text, tone) in enumerate(parts):
        if at:
            spans.append((". ", ""))
        spans.append((f"{text[0].upper()}{text[1:]}" if at else text, tone))
    return (*spans, (".", ""))


def _subject(contrast: Contrast) -> str:
    if contrast.kind == "trend":
        return f"{contrast.names[0]} to {contrast.names[-1]}, for each doubling of the rank"
    one, other = contrast.names
    return f"{one} against {other}"


def number(value: float, digits: int = 3) -> str:
    """A number with a true minus sign."""
    return f"{round(value, digits) or 0:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A difference, with its sign unless it rounds to zero."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else number(0, digits)


def interval(value: Interval, written: Callable[[float], str] = number) -> str:
    """A mean with its bounds, where it has some."""
    if value.low is None or value.high is None:
        return written(value.mean)
    return f"{written(value.mean)} [{written(value.low)}, {written(value.high)}]"
