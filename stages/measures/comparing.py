"""What is compared: measures of arms, the differences between arms, and verdicts that are right all together.

An arm is what is compared as one thing: an original, a merge, or a LoRA of one kind, alpha, rank, step and strength, with one
training for each training seed. Every value is first the mean over the seeds of the noise within a prompt. With one training,
prompts are the units: what is said holds for other prompts and these very files. With several, the trainings are the units,
each the mean over its prompts: what is said holds for other trainings, and these prompts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.measures.likeness import Values
from stages.measures.statistics import CONFIDENCE, Interval, difference_of, holm, mean_of, slopes

Asked = Literal["subject", "other", "both"]


@dataclass(frozen=True)
class Measure:
    """Something that is said of an arm.

    Attributes:
        key: its name in tables and settings.
        name: in a sentence, after "the".
        metric: of `measuring.METRICS`.
        asked: the prompts that it is taken on: those that ask for what the LoRAs learnt, the others, or the difference of both.
        wanted: 1 if more is better, -1 if less is.
    """

    key: str
    name: str
    metric: str
    asked: Asked
    wanted: Literal[1, -1]


MEASURES = (
    Measure("trigger_specificity", "likeness gained by naming the subject", "dino_similarity", "both", 1),
    Measure("subject_fidelity", "likeness to the subject where it is asked for (DINO)", "dino_similarity", "subject", 1),
    Measure("subject_fidelity_clip", "likeness to the subject where it is asked for (CLIP)", "clip_similarity", "subject", 1),
    Measure("leak", "likeness to the subject where it is not asked for (DINO)", "dino_similarity", "other", -1),
    Measure("prompt_alignment", "likeness to the prompt where the subject is asked for", "prompt_similarity", "subject", 1),
    Measure("prompt_alignment_other", "likeness to the prompt where it is not asked for", "prompt_similarity", "other", 1),
    Measure("drift", "drift from the merge's images where the subject is not asked for", "drift", "other", -1),
    Measure("diversity", "diversity of the images of a prompt that asks for the subject", "diversity", "subject", 1),
    Measure("diversity_other", "diversity of the images of a prompt that does not ask for it", "diversity", "other", 1),
    Measure("copying", "likeness to the nearest training image", "nearest_training_similarity", "subject", -1),
)
BY_KEY = {measure.key: measure for measure in MEASURES}

ArmValues = Mapping[Any, Values]
"""For each metric the values of an arm, (T, P): by training and prompt."""


def estimate(measure: Measure, values: Values, asks: NDArray[np.bool_]) -> Interval:
    """A measure of an arm, or of the difference of two.

    Args:
        measure: which.
        values: (T, P), of its metric, by training and prompt.
        asks: (P,), whether a prompt asks for what the LoRAs learnt.
    """
    if measure.asked != "both":
        return mean_over(values[:, asks if measure.asked == "subject" else ~asks])
    if len(values) > 1:
        return mean_of(values[:, asks].mean(axis=1) - values[:, ~asks].mean(axis=1))
    return difference_of(values[0, asks], values[0, ~asks])


def mean_over(values: Values) -> Interval:
    """The mean of values, (T, P), by training and prompt: over trainings where there are several, else over prompts."""
    return mean_of(values.mean(axis=1) if len(values) > 1 else values[0])


def applies(measure: Measure, asks: NDArray[np.bool_], seeds: int) -> bool:
    """Whether a measure can be taken: there are prompts for it, and seeds."""
    needed = {"subject": asks.any(), "other": (~asks).any(), "both": asks.any() and (~asks).any()}[measure.asked]
    return bool(needed) and not (measure.metric == "diversity" and seeds < 2)


@dataclass(frozen=True)
class Contrast:
    """One difference that is declared before it is looked at.

    Attributes:
        measure: of what.
        names: of the arm, and of the one that is taken off; of a trend, the arms in their order.
        kind: "difference", or "trend" over the logarithm of the rank.
        interval: the difference, or the change for each doubling of the rank.
        adjusted_p: the p-value, corrected for all comparisons together; None without an interval.
        primary: whether it is the one that was declared to matter most.
    """

    measure: Measure
    names: tuple[str, ...]
    kind: Literal["difference", "trend"]
    interval: Interval
    adjusted_p: float | None
    primary: bool

    @property
    def told_apart(self) -> bool:
        """Whether it is told apart from 0, after the correction."""
        return self.adjusted_p is not None and self.adjusted_p <= 1 - CONFIDENCE

    @property
    def verdict(self) -> Literal["better", "worse", "not told apart"]:
        """Whether the difference is wanted."""
        if not self.told_apart:
            return "not told apart"
        return "better" if np.sign(self.interval.mean) == self.measure.wanted else "worse"


@dataclass(frozen=True)
class Declared:
    """A difference that shall be looked at: of an arm from another, or of several arms by rank.

    Attributes:
        names: of the arms.
        arms: their values.
        x: for a trend, the logarithms (to base 2) of the ranks; None for a difference of two.
        without: keys of measures that say nothing here.
    """

    names: tuple[str, ...]
    arms: Sequence[ArmValues]
    x: tuple[float, ...] | None = None
    without: Sequence[str] = ()


def compare(declared: Sequence[Declared], asks: NDArray[np.bool_], seeds: int, primary: str) -> list[Contrast]:
    """Make all comparisons, and correct them for being many.

    The first that is declared, by the primary measure, begins with half of the level, and all others share the other half
    (`statistics.holm`): so the one question that was declared keeps its power however many others are asked beside it.

    Args:
        declared: the differences that are looked at; the first is the main one.
        asks: (P,), whether a prompt asks for what the LoRAs learnt.
        seeds: of the noise, for each prompt.
        primary: the key of the measure that matters most; "" where no question is the main one, and all share alike.
    """
    made: list[tuple[Measure, Declared, Interval]] = []
    for each in declared:
        for measure in MEASURES:
            if applies(measure, asks, seeds) and measure.key not in each.without:
                made.append((measure, each, estimate(measure, _values(each, measure.metric), asks)))
    tested = [index for index, (_, _, interval) in enumerate(made) if interval.p is not None]
    first = next((index for index in tested if made[index][0].key == primary and made[index][1] is declared[0]), None)
    weights = [max(1, len(tested) - 1) if index == first else 1 for index in tested]
    p_values = [made[index][2].p or 0.0 for index in tested]
    adjusted = dict(zip(tested, holm(p_values, weights), strict=True))
    return [
        Contrast(
            measure, each.names, "difference" if each.x is None else "trend", interval, adjusted.get(index), index == first
        )
        for index, (measure, each, interval) in enumerate(made)
    ]


def _values(declared: Declared, metric: str) -> Values:
    """(T, P): the difference of two arms, or the slope over several, by training and prompt."""
    arms = [arm[metric] for arm in declared.arms]
    trainings = max(map(len, arms))
    spread = [np.broadcast_to(arm, (trainings, arm.shape[1])) if len(arm) == 1 else arm for arm in arms]
    if declared.x is None:
        return spread[0] - spread[1]
    stacked = np.stack(spread, axis=-1)
    return slopes(declared.x, stacked)


def difference(measure: Measure, one: ArmValues, other: ArmValues, asks: NDArray[np.bool_]) -> Interval:
    """A measure of the first arm minus that of the second, paired as `compare` pairs them; corrected for nothing."""
    return estimate(measure, _values(Declared((), (one, other)), measure.metric), asks)


def halves(count: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Every other of so many, from the first on, and the rest."""
    even = np.arange(count) % 2 == 0
    return even, ~even


def chosen_on(asks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(P,), the prompts that the best is chosen on: every other of those that ask for what was learnt, and of the rest."""
    chosen = np.zeros(len(asks), dtype=bool)
    for group in (asks, ~asks):
        chosen[np.flatnonzero(group)[halves(int(group.sum()))[0]]] = True
    return chosen


@dataclass(frozen=True)
class Selection:
    """The best of several arms, chosen on one half of the prompts and seeds, and looked at on the other.

    Attributes:
        names: of all that it was chosen from.
        chosen: the name of the best.
        measure: by which.
        flattering: its value on the half that it was chosen on.
        reported: its value on the other half, with its interval.
    """

    names: tuple[str, ...]
    chosen: str
    measure: Measure
    flattering: float
    reported: Interval


def select(candidates: Mapping[str, tuple[Values, Values]], asks: NDArray[np.bool_], measure: Measure) -> Selection | None:
    """Choose the best of several arms by a measure; None where a half has no prompt of each kind, or there is no choice.

    Args:
        candidates: by name, the values of the measure's metric, (T, P): over the one half of the seeds, and over the other.
        asks: (P,), whether a prompt asks for what the LoRAs learnt.
        measure: what is best.
    """
    halved = chosen_on(asks)
    if len(candidates) < 2 or not all(applies(measure, asks[part], 2) for part in (halved, ~halved)):
        return None
    on_half = {name: estimate(measure, values[:, halved], asks[halved]).mean for name, (values, _) in candidates.items()}
    if any(math.isnan(value) for value in on_half.values()):
        return None
    chosen = max(on_half, key=lambda name: measure.wanted * on_half[name])
    reported = estimate(measure, candidates[chosen][1][:, ~halved], asks[~halved])
    return Selection(tuple(candidates), chosen, measure, on_half[chosen], reported)
