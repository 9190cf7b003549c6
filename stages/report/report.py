"""The report: grids as PNG, charts as SVG, tables of scores, and one self-contained page."""

from collections.abc import Sequence
from pathlib import Path

from stages.drawing.image_files import COMPOSED, xmp_chunk
from stages.pipeline.variants import Variant
from stages.report.cards import write_cards
from stages.report.contents import COLOURS, Comparison
from stages.report.figures import write_charts
from stages.report.grids import Column, Grid, Row, Strip, draw_grid, svg_grid
from stages.report.histories import write_histories
from stages.report.lettering import undrawable
from stages.report.page import page_files, render_page
from stages.report.score_tables import (
    write_cell_tables,
    write_contrasts,
    write_costs,
    write_distances,
    write_levels,
    write_metrics,
)

PRINT = "print"
"""The folder of the grids as SVG; apart from charts/, which `dvc plots` shows."""
NAMED = 8
"""How many characters a problem names; the others are counted."""


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write grids, charts/ with those of the page, print/ with the grids as SVG, tables, findings, cards/ and index.html."""
    for name in ("charts", PRINT):
        (folder / name).mkdir()
    for name, grid in grids(comparison).items():
        draw_grid(grid, comparison.config).save(folder / name, pnginfo=xmp_chunk(COMPOSED))
        (folder / PRINT / Path(name).with_suffix(".svg").name).write_text(svg_grid(grid, comparison.config), encoding="utf-8")
    write_charts(comparison, folder / "charts")
    write_levels(comparison, folder / "levels.csv")
    write_contrasts(comparison, folder / "contrasts.csv")
    write_cell_tables(comparison, folder)
    write_distances(comparison, folder / "distances.csv")
    write_costs(comparison, folder / "costs.csv")
    (folder / "findings.txt").write_text("".join(f"{line}\n" for line in comparison.findings.sentences), encoding="utf-8")
    write_metrics(comparison, folder / "metrics.json")
    write_histories(comparison.histories, folder)
    write_cards(comparison, folder / "cards")
    pictures = page_files(comparison)
    (folder / "index.html").write_text(render_page(comparison, pictures), encoding="utf-8")
    pictures.write(folder)


def grids(comparison: Comparison) -> dict[str, Grid]:
    """The grids by the names of their files: the main grid, and one for each kind of LoRA."""
    sweep = comparison.results.sweep
    sweeps = {
        f"charts/{table}-{kind}.png": sweep_grid(comparison, table, rows)
        for kind in sweep.kinds
        for table, rows in sweep.tables(kind).items()
    }
    return {"grid.png": main_grid(comparison), **sweeps}


def font_problems(comparison: Comparison) -> list[str]:
    """What is wrong with the letters of the grids, a line each; they need not be drawn for this.

    Raises:
        OSError: the font cannot be read.
    """
    texts = [text for grid in grids(comparison).values() for text in grid.texts]
    if not (missing := undrawable(texts, comparison.config.font)):
        return []
    named = ", ".join(f"{character} (U+{ord(character):04X})" for character in missing[:NAMED])
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    boxes, them = ("a box", "it") if len(missing) == 1 else ("boxes", "them")
    return [f"font: it has no {named}{more}: the PNG grids show {boxes}; set it to a .ttf or .otf file that has {them}"]


def main_grid(comparison: Comparison) -> Grid:
    """Prompts down, those first that do not ask for the subject; originals, merge and LoRAs across; training images below."""
    results = comparison.results
    leading = results.sweep.leading
    count = comparison.config.grid_prompts
    shown = [*comparison.other_prompts[:count], *comparison.subject_prompts[:count]]
    rows = [Row(results.prompts[index], [comparison.pictures(variant, index) for variant in leading]) for index in shown]
    strip = Strip(comparison.training_title, [image.file for image in comparison.training.shown])
    return Grid(comparison.config.title, _columns(comparison, leading), rows, strip)


def sweep_grid(comparison: Comparison, table: str, rows: Sequence[Sequence[Variant]]) -> Grid:
    """One of `Sweep.tables`, with pictures of the first of the subject prompts."""
    namer, prompt = comparison.namer, comparison.subject_prompts[0]
    columns = [Column(*namer.column(table, variant), COLOURS[variant.kind]) for variant in rows[0]]
    shown = [Row(namer.row(table, row), [comparison.pictures(variant, prompt) for variant in row]) for row in rows]
    return Grid(comparison.results.prompts[prompt], columns, shown)


def _columns(comparison: Comparison, variants: Sequence[Variant]) -> list[Column]:
    return [Column(*comparison.namer.heading(variant), COLOURS[variant.kind]) for variant in variants]
