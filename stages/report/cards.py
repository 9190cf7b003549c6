"""Model cards, one for each LoRA, in Hugging Face's format: what `publish` puts on the hub beside its file."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from markupsafe import Markup

from stages.pipeline.variants import Variant
from stages.pipeline.wording import in_place
from stages.report.contents import Comparison
from stages.report.explorer import said
from stages.report.rendering import template

CARD = "README.md"
EXAMPLES = {"subject": 4, "other": 2}
"""How many images of each list of prompts a card shows, each of another prompt."""


def write_cards(comparison: Comparison, folder: Path) -> None:
    """Write <training>/README.md and the images that it shows, for each training."""
    for variant in shown_variants(comparison):
        card = folder / variant.training.name
        (card / "images").mkdir(parents=True)
        for image in examples(comparison, variant):
            shutil.copyfile(image["file"], card / image["place"])
        (card / CARD).write_text(render_card(comparison, variant), encoding="utf-8")


def shown_variants(comparison: Comparison) -> list[Variant]:
    """Of each training the variant that its card tells of: its end, at the leading strength."""
    leading = comparison.results.sweep.lora_scale[0]
    variants = [variant for variant in comparison.results.sweep.variants if variant.rank is not None and variant.step is None]
    return [variant for variant in variants if variant.lora_scale == leading]


def examples(comparison: Comparison, variant: Variant) -> list[dict[str, Any]]:
    """The images that a card shows: the first of as many prompts of each list."""
    results = comparison.results
    chosen = [index for group, indices in results.groups.items() for index in indices[: EXAMPLES[group]]]
    files = [results.files(variant, index, 1)[0] for index in chosen]
    return [
        {"prompt": results.prompts[index], "file": file, "place": f"images/{file.name}"}
        for index, file in zip(chosen, files, strict=True)
    ]


def render_card(comparison: Comparison, variant: Variant) -> str:
    """A card as Markdown with a head of YAML."""
    results, settings = comparison.results, comparison.training_of(variant)
    levels = [(each, results.levels[_arm(comparison, variant)][each.key]) for each in results.measures]
    before = results.levels[variant.merge]
    names = {comparison.namer.arm(_arm(comparison, variant)), comparison.namer.label(variant)}
    sentences = [line for line in comparison.findings.sentences if any(name in line for name in names)]
    return template("card.md.jinja").render(
        head=Markup(head(comparison, variant).to_yaml()),
        title=f"{comparison.config.title}: {comparison.namer.label(variant)}",
        variant=variant,
        whole=settings["tuned"] == "full",
        token=settings.get("placeholder_token"),
        with_lora=settings["tuned"] == "lora",
        by_peft=settings["tuned"] == "lora" and _adapter(settings) != "lora",
        namer=comparison.namer,
        examples=examples(comparison, variant),
        levels=levels,
        before=before,
        sentences=[*sentences, *comparison.findings.limits],
        settings=[(name.replace("_", " "), said(value)) for name, value in settings.items()],
        instance_prompt=settings.get("instance_prompt"),
        prompt=Markup(json.dumps(_read(settings, results.prompts[comparison.subject_prompts[0]]), ensure_ascii=False)),
        held_out=results.dataset.held_out,
    )


def _read(settings: Mapping[str, Any], prompt: str) -> str:
    """A prompt as a program has to be given it that knows nothing of what a word replaces."""
    token, replaces = settings.get("placeholder_token"), settings.get("replaces")
    return in_place(prompt, replaces, token) if token and replaces else prompt


def head(comparison: Comparison, variant: Variant) -> ModelCardData:
    """The head of a card, as model sites read it."""
    card, settings = comparison.config.card, comparison.training_of(variant)
    kind = {"full": "full-finetune", "embedding": "textual-inversion"}.get(settings["tuned"]) or _adapter(settings)
    merged = ["merge"] if {"theta0", "theta1"} <= set(comparison.results.sweep.bases) else []
    images: Any = [{"text": image["prompt"], "output": {"url": image["place"]}} for image in examples(comparison, variant)]
    return ModelCardData(
        base_model=list(card.base_models) or None,
        license=card.license,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "text-to-image", "diffusers", kind, *merged],
        instance_prompt=settings.get("instance_prompt"),
        widget=images,
    )


def _adapter(settings: Mapping[str, Any]) -> str:
    """The kind of adapter, as tags have it."""
    return str((settings["peft"] or settings)["peft_type"]).lower()


def _arm(comparison: Comparison, variant: Variant) -> Variant:
    """What a variant is compared as."""
    return next(first for first, variants in comparison.results.arms.items() if variant in variants)
