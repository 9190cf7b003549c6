"""The report: grids as PNG, tables of scores, and one self-contained page. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from stages.comparison.grids import Column, Row, Strip, draw_grid
from stages.comparison.histories import write_courses
from stages.comparison.page import render_page
from stages.comparison.presentation import COLOURS, Comparison
from stages.comparison.results import write_metrics, write_scores_table, write_variants_table
from stages.comparison.variants import Kind, Variant


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write grid.png, a sweep-….png for each kind of LoRA, tables, metrics.json and index.html."""
    results = comparison.results
    main_grid(comparison).save(folder / "grid.png")
    for kind in results.sweep.kinds:
        sweep_grid(comparison, kind).save(folder / f"sweep-{kind}.png")
    write_scores_table(results, folder / "scores.csv")
    write_variants_table(results, comparison.histories, folder / "variants.csv")
    write_metrics(results, comparison.presentation.subject_prompts, folder / "metrics.json")
    write_courses(comparison.histories, folder)
    (folder / "index.html").write_text(render_page(comparison), encoding="utf-8")


def main_grid(comparison: Comparison) -> Image.Image:
    """Prompts down; originals, merge and LoRAs across; training images below."""
    results, presentation = comparison.results, comparison.presentation
    leading = results.sweep.leading
    rows = [
        Row(prompt, [comparison.pictures(variant, index) for variant in leading]) for index, prompt in results.prompts.items()
    ]
    strip = Strip(comparison.training_title, [file for file, _ in comparison.training.sample])
    return draw_grid(presentation.title, _columns(comparison, leading), rows, presentation.style, strip)


def sweep_grid(comparison: Comparison, kind: Kind) -> Image.Image:
    """Alphas down; no LoRA and each rank across; the first of the subject prompts."""
    presentation, lines = comparison.presentation, comparison.results.sweep.lines(kind)
    prompt = presentation.subject_prompts[0]
    columns = [Column(*comparison.namer.sweep_heading(variant), COLOURS[variant.kind]) for variant in lines[0]]
    rows = [
        Row(comparison.namer.formula(line[0]), [comparison.pictures(variant, prompt) for variant in line]) for line in lines
    ]
    return draw_grid(comparison.results.prompts[prompt], columns, rows, presentation.style)


def _columns(comparison: Comparison, variants: Sequence[Variant]) -> list[Column]:
    return [Column(*comparison.namer.heading(variant), COLOURS[variant.kind]) for variant in variants]
