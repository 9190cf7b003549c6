"""The tables of a comparison: scores.csv and variants.csv for people, metrics.json for DVC."""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.pipeline.tables import write_table
from stages.pipeline.variants import Variant
from stages.report.contents import Comparison
from stages.report.effects import EFFECTS, effect_of
from stages.report.histories import HELD_OUT_LOSS
from stages.report.scores import METRICS, Interval, select

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a text that a spreadsheet would compute instead of showing (OWASP, "CSV Injection")."""

IDENTITY = ("variant", "kind", "alpha", "rank")


def write_scores_table(comparison: Comparison, path: Path) -> None:
    """Write scores.csv: for each variant a row for the subject prompts, one for the others, and one for each prompt.

    The column `prompts` says which of the two groups a row belongs to; `prompt` is empty in the row of a whole group. Each
    metric has its mean; `…_gain` is the mean difference to the same merge without a LoRA, paired by prompt and seed, and
    `…_verdict` says whether it is wanted; both are empty without a LoRA. `…_seeds_low` and `…_seeds_high` bound the 95 %
    interval over seeds: what other seeds would give with these very prompts. It says nothing about other prompts or another
    training.
    """
    ends = ("", "_seeds_low", "_seeds_high", "_gain", "_gain_seeds_low", "_gain_seeds_high", "_verdict")
    columns = [f"{metric}{end}" for metric in METRICS for end in ends]
    write_table(path, (*IDENTITY, "prompts", "prompt", "images", *columns), _score_rows(comparison))


def _score_rows(comparison: Comparison) -> Iterator[Sequence[Any]]:
    results, groups = comparison.results, comparison.groups
    for variant in results.scores:
        for group, prompts in groups.items():
            yield _score_row(comparison, variant, group, "", prompts)
        for group, prompts in groups.items():
            for index in prompts:
                yield _score_row(comparison, variant, group, as_text(results.prompts[index]), [index])


def _score_row(
    comparison: Comparison, variant: Variant, group: str, prompt: str, prompt_indices: Collection[int]
) -> Sequence[Any]:
    results = comparison.results
    numbers: list[str] = []
    for metric in METRICS:
        numbers += _bounds(results.mean(variant, metric, prompt_indices))
        if variant.rank is None:
            numbers += [""] * 4
            continue
        gain = results.gain(variant, metric, prompt_indices)
        verdict = "" if gain.low is None else effect_of(metric, group == "subject").verdict(gain)
        numbers += [*_bounds(gain), verdict]
    images = len(select(results.scores[variant], METRICS[0], prompt_indices))
    return (*_identity(variant), group, prompt, images, *numbers)


def write_variants_table(comparison: Comparison, path: Path) -> None:
    """Write variants.csv: one row a variant with its mean scores on the subject prompts and on the others.

    A LoRA's row also has what it changed, named as in metrics.json, and the last loss of its held-out images.
    """
    means = [f"{metric}_{group}" for metric in METRICS for group in ("subject", "other")]
    columns = (*IDENTITY, *means, *(effect.key for effect in EFFECTS), HELD_OUT_LOSS)
    write_table(path, columns, (_variant_row(comparison, variant) for variant in comparison.results.scores))


def _variant_row(comparison: Comparison, variant: Variant) -> Sequence[Any]:
    groups = comparison.groups
    means = [
        comparison.results.mean(variant, metric, groups[group]).mean if group in groups else None
        for metric in METRICS
        for group in ("subject", "other")
    ]
    changes = effects_of(comparison, variant)
    history = comparison.histories.get(variant)
    held_out = history[HELD_OUT_LOSS].values.tolist() if history else []
    numbers = (*means, *(changes.get(effect.key) for effect in EFFECTS), held_out[-1] if held_out else None)
    return (*_identity(variant), *map(_number, numbers))


def write_metrics(comparison: Comparison, path: Path) -> None:
    """Write metrics.json: for every variant its mean scores on the subject prompts and what a LoRA changed.

    A variant has the same key in any sweep (`Variant.key`), so that two revisions compare the same models, and one that
    is gone shows as gone. `effects.EFFECTS` says which direction of a change is wanted: `…_gain`, on the subject prompts,
    should be above 0; `…_leak`, the gain in likeness to the training images on the other prompts, should not be above 0; and
    `…_drift`, the change of likeness to the prompt on the other prompts, should not be below 0.
    """
    metrics = {
        variant.key: {
            **{metric: comparison.results.mean(variant, metric, comparison.groups["subject"]).mean for metric in METRICS},
            **effects_of(comparison, variant),
        }
        for variant in comparison.results.scores
    }
    rounded = {key: {name: round(value, 4) for name, value in values.items()} for key, values in metrics.items()}
    path.write_text(json.dumps(rounded, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def effects_of(comparison: Comparison, variant: Variant) -> dict[str, float]:
    """How much a LoRA changed each score, by the keys of `EFFECTS`; those of other prompts only where there are any."""
    return {effect.key: change.mean for effect, change in comparison.changes(variant)}


def as_text(text: str) -> str:
    """A text that a spreadsheet shows and does not compute: an apostrophe stands before what it would take for a formula.

    A text that begins with an apostrophe gets one too, so that taking one away from either gives the text back.
    """
    return f"'{text}" if text.startswith((*FORMULA, "'")) else text


def _identity(variant: Variant) -> Sequence[Any]:
    return (variant.name, variant.kind, variant.alpha, variant.rank)


def _bounds(interval: Interval) -> list[str]:
    return [_number(value) for value in (interval.mean, interval.low, interval.high)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
