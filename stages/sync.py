"""Guard the pipeline: the first stage of every run.

Reads conf/, params.yaml, the code of all stages and the lock file. Refuses a params.yaml that is not what conf/ composes
to, any value that a stage's config does not allow, and settings that could not work together, before any long work starts, and
says which experiment this is. Writes one code fingerprint a stage to
data/code/<stage>, which that stage depends on, so that a comment reruns nothing and an edit reruns its users only; and
removes the cells of values that are no longer in the sweep, so that the comparison sees the sweep's cells alone.

It is a stage of its own so that plain `dvc repro` needs no step before it.
"""

import importlib
import pkgutil
import shutil
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import stages
from stages.pipeline.command import config_schemas, run
from stages.pipeline.config import CellsConfig, ExperimentConfig, InputsConfig, ParamsError, SweepConfig, read_params, validate
from stages.pipeline.cross_checks import look
from stages.pipeline.fingerprints import fingerprint, read_pins
from stages.pipeline.outputs import atomic_file
from stages.pipeline.provenance import check

LOCK_FILE = Path("requirements.lock")


def stage_modules() -> dict[str, ModuleType]:
    """The stage modules by name: every module of the package that has a `stage` function."""
    names = [module.name for module in pkgutil.iter_modules(stages.__path__) if not module.ispkg and module.name != "sync"]
    modules = {name: importlib.import_module(f"stages.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "stage")}


def stage(conf: Path, cells: Path, out: Path) -> None:
    """Check the parameters, write the fingerprints to `out`/<stage> and prune `cells`/{images,lora,scores}."""
    params = read_params()
    check(params, conf)
    configs = validate_all(params)
    check_together(configs)
    print(describe(configs))
    root = Path(stages.__path__[0]).parent
    pins = read_pins(LOCK_FILE)
    for name in stage_modules():
        with atomic_file(out / name) as part:
            part.write_text(fingerprint(f"stages.{name}", root, pins) + "\n")
    prune(cells, configs["sweep"])


def validate_all(params: dict[str, Any]) -> dict[str, Any]:
    """Check every section against its stage's schema; all that is wrong is listed, a line each.

    Returns:
        The configs by section; what stands above all sections is that of "".
    """
    schemas: dict[str, Any] = {"": ExperimentConfig, "sweep": SweepConfig, "cells": CellsConfig, "inputs": InputsConfig}
    for name, module in stage_modules().items():
        for parameter, schema in config_schemas(module.stage).items():
            schemas[name if parameter == "config" else parameter] = schema
    above = {field.name: params.get(field.name, "???") for field in fields(ExperimentConfig)}
    configs, wrong = {}, []
    for section, schema in schemas.items():
        try:
            configs[section] = validate(section, schema, params.get(section) if section else above)
        except ParamsError as error:
            wrong.append(str(error))
    if wrong:
        raise ParamsError("\n".join(wrong))
    return configs


def check_together(configs: Mapping[str, Any]) -> None:
    """Refuse settings that could not work together, a line each; print what may not be meant."""
    findings = look(configs)
    if refused := [finding.text for finding in findings if finding.refused]:
        raise ParamsError("\n".join(refused))
    for finding in findings:
        print(f"warning: {finding.text}", file=sys.stderr)


def describe(configs: Mapping[str, Any]) -> str:
    """Which experiment this is, in one line."""
    above, names, sweep = configs[""], configs["compare"].names, configs["sweep"]
    merged = f"{names.theta0} and {names.theta1} merged at alpha {', '.join(map(str, sweep.alpha))}"
    model = merged if configs["base"].theta1 else names.merge
    taught = f", taught {above.trigger!r}" if above.trigger else ""
    return f"experiment {above.name}: {model}{taught}; {len(sweep.variants)} variants"


def prune(cells: Path, sweep: SweepConfig) -> None:
    """Remove images, LoRAs and scores of variants that the sweep no longer names; they stay in DVC's cache."""
    for folder in (cells / "images", cells / "lora", cells / "scores"):
        for cell in sorted(folder.iterdir()) if folder.is_dir() else ():
            if cell.name.removesuffix(".csv") in sweep.variants:
                continue
            if cell.is_dir():
                shutil.rmtree(cell)
            else:
                cell.unlink()


if __name__ == "__main__":
    run(stage)
