"""What the page says; its HTML is in templates/page.html.jinja."""

import base64
import hashlib
import json
from functools import partial
from itertools import groupby
from math import isnan
from typing import Any

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from stages.dataset.metadata import MASKS
from stages.measures.comparing import BY_KEY, Measure, difference
from stages.measures.likeness import ENOUGH_FOR_COPIES
from stages.measures.statistics import Interval
from stages.pipeline.variants import Kind, Variant
from stages.report.citing import BIBTEX, methods
from stages.report.contents import COLOURS, Comparison
from stages.report.explorer import explorer, said
from stages.report.findings import SAYS_NOTHING_BESIDE_THE_MERGE
from stages.report.grids import mosaic_columns
from stages.report.lineage import lineage
from stages.report.page_files import PageFiles
from stages.report.plots import METRIC_NAMES, forest, trade_off, training, trends
from stages.report.rendering import TEMPLATES, template
from stages.report.score_tables import costs

SETTINGS = {
    "noise_scheduler": "Sampler",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance scale",
    "negative_prompt": "Negative prompt",
    "resolution": "Pixels of a side",
    "clip_skip": "Text encoder layers skipped",
    "lora_scale": "LoRA scale",
}
SCRIPT = "report.js"
POLICY = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'"
"""What a browser lets the page do: show pictures, and run this one script. So no text in it can run, and nothing is fetched."""
WORST = 6
"""How many images are shown beside the training images that they are nearest to."""


def page_files(comparison: Comparison) -> PageFiles:
    """The pictures that a page shows."""
    results = comparison.results
    roots = {results.images: "images", comparison.loras: "lora", comparison.dataset: "dataset"}
    roots[comparison.training.raw / MASKS] = MASKS
    return PageFiles(roots, [results.images], comparison.config.single_file)


def render_page(comparison: Comparison, pictures: PageFiles) -> str:
    """The page as HTML; the same comparison always gives the same bytes.

    Args:
        comparison: what it shows.
        pictures: is asked for every picture that the page shows.
    """
    sweep, script = comparison.results.sweep, (TEMPLATES / SCRIPT).read_text(encoding="utf-8")
    return template("page.html.jinja").render(
        pictures=pictures,
        places={variant: place for place, variant in enumerate(sweep.variants)},
        prompt_places={index: place for place, index in enumerate(comparison.results.prompts)},
        others=others(comparison),
        question=comparison.findings.question,
        explorer=htmlsafe_json_dumps(explorer(comparison), dumps=partial(json.dumps, separators=(",", ":"))),
        script=Markup(script),
        policy=POLICY.format(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        lineage=lineage(comparison),
        methods=methods(comparison),
        bibtex=BIBTEX,
        comparison=comparison,
        results=comparison.results,
        sweep=sweep,
        namer=comparison.namer,
        findings=comparison.findings,
        config=comparison.config,
        colours=COLOURS,
        metric_names=METRIC_NAMES,
        mosaic_columns=mosaic_columns,
        cards=[card(comparison, variant) for variant in sweep.leading if variant.rank],
        forests=[forest(comparison, metric) for metric in METRIC_NAMES],
        trade_off=trade_off(comparison),
        trends=trends(comparison),
        levels=levels(comparison),
        differences=differences(comparison),
        comparisons=[(names, list(each)) for names, each in groupby(comparison.findings.contrasts, lambda each: each.names)],
        costs=costs(comparison),
        reached=reached(comparison),
        copies=copies(comparison),
        enough_for_copies=ENOUGH_FOR_COPIES,
        trainings=[training(comparison, kind) for kind in sweep.kinds],
        settings=settings(comparison),
    )


def others(comparison: Comparison) -> dict[Kind, list[Variant]]:
    """The variants that the main grid does not show, by their kind."""
    sweep = comparison.results.sweep
    found: dict[Kind, list[Variant]] = {}
    for variant in sweep.variants:
        if variant not in sweep.leading:
            found.setdefault(variant.kind, []).append(variant)
    return found


def card(comparison: Comparison, variant: Variant) -> dict[str, Any]:
    """What one LoRA changed, by each measure: levels before and after, and the contrast with its verdict."""
    results, findings = comparison.results, comparison.findings
    contrasts = findings.of(variant, variant.merge)
    facts = [
        {
            "contrast": contrast,
            "before": results.levels[variant.merge][key].mean,
            "after": results.levels[variant][key].mean,
        }
        for key, contrast in contrasts.items()
    ]
    return {"variant": variant, "facts": facts}


def levels(comparison: Comparison) -> list[dict[str, Any]]:
    """For each measure its values over all arms, with the ceiling and the floor where it has them."""
    results = comparison.results
    ceilings = {
        "dino_similarity": results.dataset.ceilings.get("dino"),
        "clip_similarity": results.dataset.ceilings.get("clip"),
    }
    merge = results.measured[next(variant for variant in results.sweep.variants if variant.kind == "merge")]
    rows = []
    for measure in results.measures:
        takes_likeness = measure.metric in ceilings and measure.asked == "subject"
        rows.append(
            {
                "measure": measure,
                "arms": {first: levels[measure.key] for first, levels in results.levels.items()},
                "ceiling": ceilings[measure.metric] if takes_likeness else None,
                "floor": merge.floor if measure.metric == "prompt_similarity" and not isnan(merge.floor) else None,
            }
        )
    return rows


def differences(comparison: Comparison) -> list[dict[str, Any]]:
    """Every arm against each of those that one may want to know it against: the originals, the merges, the leading LoRAs.

    Unlike the contrasts these are not declared beforehand, and not corrected for being many.
    """
    results = comparison.results
    merges = [variant for variant in results.sweep.variants if variant.kind == "merge"]
    tables = []
    for reference in dict.fromkeys([*results.sweep.leading, *merges]):
        others = [first for first in results.arms if first != reference]
        both_tuned = reference.rank is not None
        measures = [each for each in results.measures if both_tuned or each.key not in SAYS_NOTHING_BESIDE_THE_MERGE]
        rows = [
            (first, [difference(each, results.arm(first), results.arm(reference), results.asks) for each in measures])
            for first in others
        ]
        tables.append({"reference": reference, "measures": measures, "rows": rows})
    return tables


def reached(comparison: Comparison) -> tuple[list[Measure], dict[str, list[Interval | None]]]:
    """What each training reached, by its name, beside what it cost: likeness and leak, of all of its seeds together."""
    results = comparison.results
    measures = [each for each in (BY_KEY["subject_fidelity"], BY_KEY["leak"]) if each in results.measures]
    first_of = {variant: first for first, variants in results.arms.items() for variant in variants}
    found = {}
    for variant in comparison.files:
        first = first_of.get(variant)  # none where no image is drawn at full strength
        found[variant.name] = [None if first is None else results.levels[first][each.key] for each in measures]
    return measures, found


def copies(comparison: Comparison) -> dict[str, Any]:
    """How many images of each LoRA count as copies of a training image, and those that are nearest to one, beside it."""
    results = comparison.results
    names, seeds = results.dataset.training_names, len(results.seeds)
    counts, near = [], []
    for variant, measured in results.measured.items():
        if variant.rank is None:
            continue
        values = measured.by_image["nearest_training_similarity"]
        counts.append((comparison.namer.label(variant), int(measured.copied.sum()), values.size))
        for number, cell in enumerate(results.cells):
            place = divmod(number, seeds)
            near.append((float(values[place]), variant, cell, names[int(measured.nearest[place])]))
    near.sort(key=lambda each: -each[0])
    shown = [
        {
            "similarity": similarity,
            "label": comparison.namer.label(variant),
            "prompt": cell.prompt,
            "image": results.images / variant.name / cell.file_name,
            "training": comparison.training.file_of(name),
        }
        for similarity, variant, cell, name in near[:WORST]
    ]
    return {"counts": counts, "shown": shown, "enough": len(names) >= ENOUGH_FOR_COPIES}


def settings(comparison: Comparison) -> dict[str, str]:
    """The settings that the images were drawn with, as the images say; an empty one is "none"."""
    recipe = comparison.recipes[comparison.results.sweep.leading[-1]]
    return {name: "none" if recipe[key] == "" else said(recipe[key]) for key, name in SETTINGS.items() if key in recipe}
