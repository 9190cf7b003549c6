"""What the page says; its HTML, which needs no other file, is in report.html.jinja."""

from collections.abc import Sequence
from typing import Any

from stages.pipeline.png_text import read_png_text
from stages.pipeline.variants import Kind, Variant
from stages.report.charts import Axis, LineChart, fit_axis, line_chart
from stages.report.contents import COLOURS, Comparison, Preview
from stages.report.effects import METRIC_NAMES, Effect, effect_of
from stages.report.grids import mosaic_columns
from stages.report.histories import HELD_OUT_LOSS
from stages.report.rendering import signed, template
from stages.report.scores import Interval

SETTINGS = {
    "noise_scheduler": "Sampler",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance scale",
    "negative_prompt": "Negative prompt",
    "resolution": "Pixels of a side",
    "clip_skip": "Text encoder layers skipped",
    "lora_scale": "LoRA scale",
}
WANTED_ON_OTHER_PROMPTS = {
    "reference_similarity": "should stay where it is without a LoRA; higher is harm, it leaks",
    "prompt_similarity": "higher is better; lower than without a LoRA is harm",
}
"""For each metric, what its score should do on prompts that do not ask for what the LoRAs learnt."""


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
    """What one LoRA changed on the subject prompts and, where there are any, on the others, in words and numbers."""
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
    """A forest plot: every variant's mean with its interval, on the subject prompts and on the others, over one axis.

    Positions are in percent of the plot's width. `harm` says what a LoRA made worse by this metric; each text begins with the
    mark that it belongs to, ● for the subject prompts and ○ for the others.
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
    drawn = [row | {"positions": {name: _positions(row[name], axis) for name in ("subject", "other")}} for row in rows]
    return {"metric": metric, "rows": drawn, "ticks": axis.ticks(3), "legend": forest_legend(comparison, metric)}


def forest_legend(comparison: Comparison, metric: str) -> list[str]:
    """What the marks of the forest plot stand for, and which direction is wanted; a line each."""
    subject, others = (len(prompts) for prompts in (comparison.config.subject_prompts, comparison.other_prompts))
    asked = "the prompt that asks" if subject == 1 else f"the {subject} prompts that ask"
    lines = [f"● {asked} for what the LoRAs learnt: higher is better"]
    if others:
        other = "the other prompt" if others == 1 else f"the {others} other prompts"
        lines.append(f"○ {other}: {WANTED_ON_OTHER_PROMPTS[metric]}")
    if (seeds := len(comparison.results.seeds)) > 1:
        lines.append(f"Lines: 95 % intervals over the {seeds} seeds, for these prompts")
    return lines


def _positions(mark: Interval | None, axis: Axis) -> list[float] | None:
    """Positions of the lower bound, the mean and the upper bound; without bounds all three are the mean's."""
    if mark is None:
        return None
    low, high = (mark.mean if bound is None else bound for bound in (mark.low, mark.high))
    return [axis.position(value) for value in (low, mark.mean, high)]


def training(comparison: Comparison, kind: Kind) -> dict[str, Any]:
    """The charts of the trainings of one kind of LoRA, by their titles, and the previews of each training, by prompt."""
    trained = {comparison.namer.detail(variant): variant for variant in comparison.histories if variant.kind == kind}
    histories = {name: comparison.histories[variant] for name, variant in trained.items()}
    charts: dict[str, LineChart] = {
        "Loss": line_chart(histories, "loss", held_out=HELD_OUT_LOSS),
        "Learning rate": line_chart(histories, "learning_rate"),
        "Gradient norm": line_chart(histories, "grad_norm"),
    }
    previews = {name: by_prompt(comparison.previews[variant]) for name, variant in trained.items()}
    return {"kind": kind, "charts": charts, "previews": {name: drawn for name, drawn in previews.items() if drawn}}


def by_prompt(previews: Sequence[Preview]) -> dict[str, list[Preview]]:
    """The previews of each prompt, in the order of their steps."""
    prompts = dict.fromkeys(preview.prompt for preview in previews)
    return {prompt: [preview for preview in previews if preview.prompt == prompt] for prompt in prompts}


def settings(comparison: Comparison) -> dict[str, str]:
    """The settings that the images were drawn with, from their PNG text; an empty one is "none"."""
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
