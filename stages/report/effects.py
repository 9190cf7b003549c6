"""The scores that a LoRA may change, and whether a rise or a fall of each is wanted.

A LoRA shall bring what it learnt into the pictures whose prompt asks for it, and leave everything else as it was. The page,
the tables, metrics.json and the comments on pull requests all take their verdicts from here.
"""

from dataclasses import dataclass
from typing import Literal

from stages.report.scores import Interval

Verdict = Literal["good", "harm", "no harm", "not told apart"]

METRIC_NAMES = {"reference_similarity": "Likeness to the training images", "prompt_similarity": "Likeness to the prompt"}


@dataclass(frozen=True)
class Effect:
    """One score that a LoRA may change.

    Attributes:
        key: its name in metrics.json and variants.csv.
        metric: of `scores.METRICS`.
        asked: whether it is taken on the subject prompts, which ask for what the LoRAs learnt, or on the others.
        higher: the verdict on a rise.
        lower: the verdict on a fall.
    """

    key: str
    metric: str
    asked: bool
    higher: Verdict
    lower: Verdict

    @property
    def name(self) -> str:
        """What the page calls it."""
        return METRIC_NAMES[self.metric] if self.asked else f"{METRIC_NAMES[self.metric]}, on prompts that do not ask for it"

    def verdict(self, change: Interval) -> Verdict:
        """Whether a change is wanted; "not told apart" where its interval holds 0, or where one seed gives no interval."""
        if change.sign == 0:
            return "not told apart"
        return self.higher if change.sign > 0 else self.lower

    def words(self, change: Interval) -> str:
        """The verdict in a sentence; empty where there is one seed only."""
        if change.low is None:
            return ""
        verdict = self.verdict(change)
        if verdict == "not told apart":
            return "not told apart from 0 by these seeds"
        leak = verdict == "harm" and change.sign > 0
        return f"clearly {'higher' if change.sign > 0 else 'lower'}: {verdict}{', it leaks' if leak else ''}"


EFFECTS = (
    Effect("reference_similarity_gain", "reference_similarity", asked=True, higher="good", lower="harm"),
    Effect("prompt_similarity_gain", "prompt_similarity", asked=True, higher="good", lower="harm"),
    Effect("reference_similarity_leak", "reference_similarity", asked=False, higher="harm", lower="no harm"),
    Effect("prompt_similarity_drift", "prompt_similarity", asked=False, higher="good", lower="harm"),
)


def effect_of(metric: str, asked: bool) -> Effect:
    """What a change of this score means on prompts that ask for what the LoRAs learnt, or on others."""
    return next(effect for effect in EFFECTS if (effect.metric, effect.asked) == (metric, asked))
