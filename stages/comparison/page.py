"""The report as one HTML page that needs nothing but itself: what it says. How it looks is in report.html.jinja."""

import base64
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from stages.comparison.cells import read_png_text
from stages.comparison.charts import Axis, LineChart, course_chart, fit_axis
from stages.comparison.grids import mosaic_columns
from stages.comparison.histories import read_history
from stages.comparison.presentation import COLOURS, Comparison, Sample
from stages.comparison.scores import Interval
from stages.comparison.variants import Kind, Variant

METRIC_NAMES = {"reference_similarity": "Likeness to the training images", "prompt_similarity": "Likeness to the prompt"}
SETTINGS = {
    "noise_scheduler": "Sampler",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance scale",
    "negative_prompt": "Negative prompt",
    "resolution": "Pixels of a side",
    "clip_skip": "Text encoder layers skipped",
    "lora_scale": "LoRA scale",
}
PAGE_IMAGE_SIZE = 256
"""Largest picture in the page, in pixels; larger ones are reduced, and lose a little to compression."""


def render_page(comparison: Comparison) -> str:
    """The page as HTML; the same comparison always gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"data_uri": data_uri, "signed": signed, "number": number, "bounds": bounds}
    return environment.get_template("report.html.jinja").render(
        comparison=comparison,
        results=comparison.results,
        sweep=comparison.results.sweep,
        namer=comparison.namer,
        presentation=comparison.presentation,
        colours=COLOURS,
        metric_names=METRIC_NAMES,
        mosaic_columns=mosaic_columns,
        cards=[card(comparison, variant) for variant in comparison.results.sweep.leading if variant.rank],
        forests=[forest(comparison, metric) for metric in METRIC_NAMES],
        trainings=[training(comparison, kind) for kind in comparison.results.sweep.kinds],
        settings=settings(comparison),
        weights=weights(comparison),
    )


def card(comparison: Comparison, variant: Variant) -> dict[str, Any]:
    """What one LoRA changed, in words and numbers: on the subject prompts, and where there are any on the others."""
    subject_prompts = comparison.presentation.subject_prompts
    facts = [_fact(comparison, variant, metric, subject_prompts) for metric in METRIC_NAMES]
    if comparison.other_prompts:
        leak = _fact(comparison, variant, "reference_similarity", comparison.other_prompts)
        facts.append(
            leak | {"name": f"{METRIC_NAMES['reference_similarity']}, where the prompt does not ask for it", "leak": True}
        )
    return {"variant": variant, "facts": facts}


def _fact(comparison: Comparison, variant: Variant, metric: str, prompts: Collection[int]) -> dict[str, Any]:
    results = comparison.results
    pairs = results.pairs(variant, metric, prompts)
    gain = results.gain(variant, metric, prompts)
    return {
        "name": METRIC_NAMES[metric],
        "gain": gain,
        "verdict": {1: "clearly higher", 0: "no clear change", -1: "clearly lower"}[gain.sign],
        "before": results.mean(variant.merge, metric, prompts).mean,
        "after": results.mean(variant, metric, prompts).mean,
        "wins": sum(value > 0 for value in pairs.values()),
        "pairs": len(pairs),
        "leak": False,
    }


def forest(comparison: Comparison, metric: str) -> dict[str, Any]:
    """Every variant's mean and interval on one axis in percent of the width: subject prompts, and the others."""
    results, others = comparison.results, comparison.other_prompts
    rows = [
        {
            "variant": variant,
            "subject": results.mean(variant, metric, comparison.presentation.subject_prompts),
            "other": results.mean(variant, metric, others) if others else None,
        }
        for variant in results.sweep.variants
    ]
    marks = [mark for row in rows for mark in (row["subject"], row["other"]) if mark is not None]
    axis = fit_axis([value for mark in marks for value in (mark.mean, mark.low, mark.high) if value is not None], 0, 100)
    return {"metric": metric, "rows": [row | {"place": _places(row, axis)} for row in rows], "ticks": axis.ticks(3)}


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
    histories = {name: read_history(comparison.histories[variant]) for name, variant in trained.items()}
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


def data_uri(path: Path) -> str:
    """A picture as a data URI: the file as it is, or a smaller WebP where it is larger than a page needs."""
    with Image.open(path) as image:
        if image.format == "PNG" and max(image.size) <= PAGE_IMAGE_SIZE:
            return _data_uri("image/png", path.read_bytes())
        picture = image.convert("RGB")
    picture.thumbnail((PAGE_IMAGE_SIZE, PAGE_IMAGE_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=88, method=4)
    return _data_uri("image/webp", buffer.getvalue())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def number(value: float, digits: int = 3) -> str:
    """A number with a true minus sign."""
    return f"{round(value, digits) or 0:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A difference, with its sign unless it rounds to zero."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else number(0, digits)


def bounds(value: Interval, digits: int = 3) -> str:
    """The bounds of a confidence interval in words; empty where there is one seed only."""
    if value.low is None or value.high is None:
        return ""
    return f"{number(value.low, digits)} to {number(value.high, digits)}"
