"""The tables of a comparison: levels, contrasts and single images for people, metrics.json for DVC."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from stages.measures.statistics import Interval
from stages.pipeline.tables import write_table
from stages.pipeline.variants import Variant
from stages.report.contents import Comparison
from stages.report.histories import HELD_OUT_LOSS

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a text that a spreadsheet would compute instead of showing (OWASP, "CSV Injection")."""

IDENTITY = ("variant", "kind", "alpha", "rank", "step", "lora_scale")
ESTIMATE = ("mean", "low", "high", "units", "p", "sign_flip_p", "detectable")


def write_levels(comparison: Comparison, path: Path) -> None:
    """Write levels.csv: every measure of every arm, with its 95 % interval over `units` prompts or trainings.

    An arm is what is compared as one thing: it has one training for each seed of the sweep (`trainings`).
    """
    results = comparison.results
    rows = (
        (*_identity(first), len(results.arms[first]), key, *_estimate(level))
        for first, levels in results.levels.items()
        for key, level in levels.items()
    )
    write_table(path, (*IDENTITY, "trainings", "measure", *ESTIMATE), rows)


def write_contrasts(comparison: Comparison, path: Path) -> None:
    """Write contrasts.csv: every declared difference and trend, with its verdict.

    `adjusted_p` is corrected for all rows together; the verdict holds where it is at most 0.05.
    """
    rows = (
        (
            each.kind,
            " > ".join(each.names),
            each.measure.key,
            each.primary,
            *_estimate(each.interval),
            _number(each.adjusted_p),
            each.verdict,
        )
        for each in comparison.findings.contrasts
    )
    write_table(path, ("contrast", "arms", "measure", "primary", *ESTIMATE, "adjusted_p", "verdict"), rows)


CELL_COLUMNS = {
    "variant": "string",
    "kind": "string",
    "alpha": "float64",
    "rank": "Int64",
    "train_seed": "Int64",
    "step": "Int64",
    "lora_scale": "float64",
    "prompts": "string",
    "prompt": "string",
    "seed": "Int64",
    "metric": "string",
    "value": "float64",
    "nearest": "string",
    "copy": "boolean",
}
"""The columns of cells.parquet, and of cells.csv, with their types."""


def write_cell_tables(comparison: Comparison, folder: Path) -> None:
    """Write cells.parquet and cells.csv, in long form: a row for each image and metric, with all that its value depends on.

    The training image that is nearest to an image (DINO) stands in the rows of `nearest_training_similarity`; `copy` says
    whether it is so near that the image counts as a copy. The parquet file has types and whole numbers; in the csv file,
    values are rounded and texts are such that a spreadsheet computes none of them (`as_text`).
    """
    import pandas as pd

    rows = list(_cell_rows(comparison))
    columns = zip(*rows, strict=True)
    table = {
        name: pd.array(list(values), dtype=kind) for (name, kind), values in zip(CELL_COLUMNS.items(), columns, strict=True)
    }
    pd.DataFrame(table).to_parquet(folder / "cells.parquet", index=False)
    write_table(folder / "cells.csv", tuple(CELL_COLUMNS), map(_as_csv, rows))


def _cell_rows(comparison: Comparison) -> Iterator[Sequence[Any]]:
    results, seeds = comparison.results, len(comparison.results.seeds)
    names = results.dataset.training_names
    for variant, measured in results.measured.items():
        identity = (variant.name, variant.kind, variant.alpha, variant.rank, variant.seed, variant.step, _strength(variant))
        for number, cell in enumerate(results.cells):
            place = divmod(number, seeds)
            for metric, values in measured.by_image.items():
                near = metric == "nearest_training_similarity"
                copied = bool(measured.copied[place]) if near else None
                nearest = names[int(measured.nearest[place])] if near else None
                yield (*identity, cell.prompts, cell.prompt, cell.seed, metric, float(values[place]), nearest, copied)


def _as_csv(row: Sequence[Any]) -> Sequence[Any]:
    texts = {None: "", True: "yes", False: "no"}
    *identity, prompt, seed, metric, value, nearest, copied = row
    return (*identity, as_text(prompt), seed, metric, _number(value), nearest or "", texts[copied])


def write_distances(comparison: Comparison, path: Path) -> None:
    """Write distances.csv: for each variant how far its images of the subject are, as a whole, from the held-out ones.

    `mmd` is the squared maximum mean discrepancy (DINO), without bias: 0 on average where both are alike, and it may be below.
    `p` is the share of permutations in which it is as large; images count as independent there, which makes it too small rather
    than too large.
    """
    rows = ((variant.name, *map(_number, distance)) for variant, distance in comparison.results.distances.items())
    write_table(path, ("variant", "mmd", "p"), rows)


def write_costs(comparison: Comparison, path: Path) -> None:
    """Write costs.csv: for each training its trained weights, the bytes of its file, its steps and its last held-out loss."""
    write_table(path, ("variant", "trained_weights", "file_bytes", "steps", HELD_OUT_LOSS), costs(comparison))


def costs(comparison: Comparison) -> list[tuple[str, int, int, int, str]]:
    """The rows of costs.csv."""
    rows = []
    for variant, file in comparison.files.items():
        history = comparison.histories[variant]
        held_out = history[HELD_OUT_LOSS].values.tolist()
        steps = int(history["loss"].steps[-1])
        rows.append(
            (variant.name, trained_weights(file), file.stat().st_size, steps, f"{held_out[-1]:.6g}" if held_out else "")
        )
    return rows


def trained_weights(file: Path) -> int:
    """How many weights a file holds: all that were trained, for nothing else is written."""
    with safe_open(file, framework="numpy") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118


def write_metrics(comparison: Comparison, path: Path) -> None:
    """Write metrics.json: for every variant its measures, and with a LoRA `…_gain`, what it changed of them.

    A variant has the same key and the same values in any sweep (`Variant.key`), so that two revisions compare the same models,
    and one that is gone shows as gone.
    """
    results = comparison.results
    levels = {
        variant: {measure.key: results.value(variant, measure) for measure in results.measures} for variant in results.measured
    }
    metrics = {
        variant.key: {
            **values,
            **({f"{key}_gain": value - levels[variant.merge][key] for key, value in values.items()} if variant.rank else {}),
        }
        for variant, values in levels.items()
    }
    rounded = {key: {name: round(value, 4) + 0.0 for name, value in values.items()} for key, values in metrics.items()}
    path.write_text(json.dumps(rounded, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def as_text(text: str) -> str:
    """A text that a spreadsheet shows and does not compute: an apostrophe stands before what it would take for a formula.

    A text that begins with an apostrophe gets one too, so that taking one away from either gives the text back.
    """
    return f"'{text}" if text.startswith((*FORMULA, "'")) else text


def _identity(variant: Variant) -> Sequence[Any]:
    return (variant.name, variant.kind, variant.alpha, variant.rank, variant.step, _strength(variant))


def _strength(variant: Variant) -> float | None:
    """The strength of a LoRA; None without one."""
    return None if variant.rank is None else variant.lora_scale


def _estimate(interval: Interval) -> list[Any]:
    bounds = [_number(value) for value in (interval.mean, interval.low, interval.high)]
    return [*bounds, interval.units, *map(_number, (interval.p, interval.sign_flip_p, interval.detectable))]


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{round(value, 5) or 0.0:.5f}"
