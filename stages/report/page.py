"""The report as one HTML page that needs nothing but itself: what it says. How it looks is in report.html.jinja."""

from collections.abc import Sequence
from typing import Any

from stages.drawing.cells import read_png_text
from stages.report.charts import Axis, LineChart, course_chart, fit_axis
from stages.report.contents import COLOURS, Comparison, Sample
from stages.report.effects import METRIC_NAMES, Effect, effect_of
from stages.report.grids import mosaic_columns
from stages.report.rendering import signed, template
from stages.report.scores import Interval
from stages.report.variants import Kind, Variant

SETTINGS = {
    "noise_scheduler": "Sampler",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance scale",
    "negative_prompt": "Negative prompt",
    "resolution": "Pixels of a side",
    "clip_skip": "Text encoder layers skipped",
    "lora_scale": "LoRA scale",
}
ELSEWHERE = {
    "reference_similarity": "should stay where it is without a LoRA; higher is harm, it leaks",
    "prompt_similarity": "higher is better; lower than without a LoRA is harm",
}
"""What is wanted of a score on prompts that do not ask for what the LoRAs learnt."""


def render_page(comparison: Comparison) -> str:
    """The page as HTML; the same comparison always gives the same bytes."""
    return template("report.html.jinja").render(
        comparison=comparison,
        results=comparison.results,
        sweep=comparison.results.sweep,
        namer=comparison.namer,
        config=comparison.config,
        colours=COLOURS,
        metric_names=METRIC_NAMES,
        effect_of=effect_of,
        mosaic_columns=mosaic_columns,
        cards=[card(comparison, variant) for variant in comparison.results.sweep.leading if variant.rank],
        forests=[forest(comparison, metric) for metric in METRIC_NAMES],
        trainings=[training(comparison, kind) for kind in comparison.results.sweep.kinds],
        settings=settings(comparison),
        weights=weights(comparison),
    )


def card(comparison: Comparison, variant: Variant) -> dict[str, Any]:
    """What one LoRA changed, in words and numbers: on the subject prompts, and where there are any on the others."""
    return {"variant": variant, "facts": [_fact(comparison, variant, *change) for change in comparison.changes(variant)]}


def _fact(comparison: Comparison, variant: Variant, effect: Effect, change: Interval) -> dict[str, Any]:
    results, prompts = comparison.results, comparison.groups["subject" if effect.asked else "other"]
    pairs = results.pairs(variant, effect.metric, prompts)
    return {
        "effect": effect,
        "change": change,
        "before": results.mean(variant.merge, effect.metric, prompts).mean,
        "after": results.mean(variant, effect.metric, prompts).mean,
        "wins": sum(value > 0 for value in pairs.values()),
        "pairs": len(pairs),
    }


def forest(comparison: Comparison, metric: str) -> dict[str, Any]:
    """Every variant's mean and interval on one axis in percent of the width: subject prompts, and the others.

    `harm` names what a LoRA made worse by this metric, by the sign of its mark: filled or hollow.
    """
    results, others = comparison.results, comparison.other_prompts
    rows = [
        {
            "name": comparison.config.names.of(variant.kind),
            "detail": comparison.namer.detail(variant),
            "colour": COLOURS[variant.kind],
            "subject": results.mean(variant, metric, comparison.config.subject_prompts),
            "other": results.mean(variant, metric, others) if others else None,
            "harm": [
                f"{'●' if effect.asked else '○'} {signed(change.mean)} harm"
                for effect, change in comparison.changes(variant)
                if effect.metric == metric and effect.verdict(change) == "harm"
            ],
        }
        for variant in results.sweep.variants
    ]
    marks = [mark for row in rows for mark in (row["subject"], row["other"]) if mark is not None]
    axis = fit_axis([value for mark in marks for value in (mark.mean, mark.low, mark.high) if value is not None], 0, 100)
    placed = [row | {"place": _places(row, axis)} for row in rows]
    return {"metric": metric, "rows": placed, "ticks": axis.ticks(3), "legend": forest_legend(comparison, metric)}


def forest_legend(comparison: Comparison, metric: str) -> list[str]:
    """What the marks are, and which way is wanted; a line each."""
    subject, others = (len(prompts) for prompts in (comparison.config.subject_prompts, comparison.other_prompts))
    asked = "the prompt that asks" if subject == 1 else f"the {subject} prompts that ask"
    lines = [f"● {asked} for what the LoRAs learnt: higher is better"]
    if others:
        other = "the other prompt" if others == 1 else f"the {others} other prompts"
        lines.append(f"○ {other}: {ELSEWHERE[metric]}")
    if (seeds := len(comparison.results.seeds)) > 1:
        lines.append(f"Lines: 95 % intervals over the {seeds} seeds, for these prompts")
    return lines


def _places(row: dict[str, Any], axis: Axis) -> dict[str, list[float] | None]:
    return {name: _place(row[name], axis) for name in ("subject", "other")}


def _place(mark: Interval | None, axis: Axis) -> list[float] | None:
    if mark is None:
        return None
    low, high = (mark.mean if bound is None else bound for bound in (mark.low, mark.high))
    return [axis.place(value) for value in (low, mark.mean, high)]


def training(comparison: Comparison, kind: Kind) -> dict[str, Any]:
    """Charts of the trainings of one kind of LoRA by what they show, and what each drew on the way."""
    trained = {comparison.namer.detail(variant): variant for variant in comparison.histories if variant.kind == kind}
    histories = {name: comparison.histories[variant] for name, variant in trained.items()}
    charts: dict[str, LineChart] = {
        "Loss": course_chart(histories, "loss", held_out="validation_loss"),
        "Learning rate": course_chart(histories, "learning_rate"),
        "Gradient norm": course_chart(histories, "grad_norm"),
    }
    drawn = {name: by_prompt(comparison.samples[variant]) for name, variant in trained.items() if comparison.samples[variant]}
    return {"kind": kind, "charts": charts, "drawn": drawn}


def by_prompt(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The images of each prompt, in the order of their steps."""
    prompts = dict.fromkeys(sample.prompt for sample in samples)
    return {prompt: [sample for sample in samples if sample.prompt == prompt] for prompt in prompts}


def settings(comparison: Comparison) -> dict[str, str]:
    """How the images were drawn, as their own PNG text says."""
    first_prompt = next(iter(comparison.results.prompts))
    text = read_png_text(comparison.pictures(comparison.results.sweep.leading[-1], first_prompt)[0])
    return {name: text[key] or "none" for key, name in SETTINGS.items() if key in text}


def weights(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Each variant's label with the sha256 of its UNet and of its LoRA."""
    first_prompt = next(iter(comparison.results.prompts))
    rows = []
    for variant in comparison.results.sweep.variants:
        text = read_png_text(comparison.pictures(variant, first_prompt)[0])
        rows.append((comparison.namer.label(variant), text.get("unet_sha256", ""), text.get("lora_sha256", "")))
    return rows
