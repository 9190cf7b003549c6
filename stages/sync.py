"""Guard the pipeline: the first stage of every run.

Reads conf/, params.yaml, the code of all stages and the lock file. Refuses a params.yaml that is not what conf/ composes
to, any value that a stage's config does not allow, and settings that could not work together, before any long work starts, and
says which experiment this is. Writes one code fingerprint a stage to
data/code/<stage>, which that stage depends on, so that a comment reruns nothing and an edit reruns its users only; and
removes the cells of values that are no longer in the sweep, as far as DVC has them in its cache.

It is a stage of its own so that plain `dvc repro` needs no step before it.
"""

import importlib
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import stages
from stages.pipeline.checks.cross_checks import look
from stages.pipeline.command import config_schemas, run
from stages.pipeline.composed_config import CellsConfig, InputsConfig
from stages.pipeline.config import MANDATORY, ExperimentConfig, ParamsError, read_params, validate
from stages.pipeline.fingerprints import fingerprint, pattern_order, read_pins
from stages.pipeline.lockfile import LOCK, cache_folder, cached, content_md5, gone_stages, locked_outs
from stages.pipeline.outputs import atomic_directory, remove
from stages.pipeline.provenance import check
from stages.pipeline.wording import counted

LOCK_FILE = Path("requirements.lock")
OF_THE_TRIGGER = (
    "caption.prefix",
    "download.source.query",
    "generate.subject_prompts",
    "train_dreambooth.instance_prompt",
    "train_dreambooth.preview_prompts",
    "train_text2img.preview_prompts",
    "train_textual_inversion.placeholder_token",
    "train_textual_inversion.preview_prompts",
    "train_textual_inversion.replaces",
)
"""Settings that derive from the trigger, and are not to be set where that is what is missing."""


def stage_modules() -> dict[str, ModuleType]:
    """The stage modules by name: every module of the package that has a `stage` function."""
    names = [module.name for module in pkgutil.iter_modules(stages.__path__) if not module.ispkg and module.name != "sync"]
    modules = {name: importlib.import_module(f"stages.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "stage")}


def stage(conf: Path, cells: Path, out: Path) -> None:
    """Check the parameters, write the fingerprints to `out`/<stage> and prune `cells`/{embeddings,images,lora}.

    Args:
        conf: the directory that params.yaml is composed from.
        cells: the directory of embeddings/, images/ and lora/, whose cells of stages that are gone are removed.
        out: the directory to write the fingerprints to, a file a stage.
    """
    params = read_params()
    check(params, conf)
    configs = validate_all(params)
    check_together(configs)
    print(describe(configs))
    root = Path(stages.__path__[0]).parent
    pins = read_pins(LOCK_FILE)
    with atomic_directory(out) as folder:
        for name in stage_modules():
            content = fingerprint(f"stages.{name}", root, pins) + pattern_order(params.get(name))
            (folder / name).write_text(f"{content}\n")
    prune(cells, params)


def validate_all(params: dict[str, Any]) -> dict[str, Any]:
    """Check every section against its stage's schema; all that is wrong is listed, a line each.

    Returns:
        The configs by section; what stands above all sections is that of "".
    """
    schemas: dict[str, Any] = {"": ExperimentConfig, "cells": CellsConfig, "inputs": InputsConfig}
    for name, module in stage_modules().items():
        for parameter, schema in config_schemas(module.stage).items():
            schemas[name if parameter == "config" else parameter] = schema
    above = {field.name: params.get(field.name, MANDATORY) for field in fields(ExperimentConfig)}
    configs, wrong = {}, []
    for section, schema in schemas.items():
        try:
            configs[section] = validate(section, schema, params.get(section) if section else above)
        except ParamsError as error:
            wrong += str(error).splitlines()
    if above["trigger"] == MANDATORY:
        wrong = [line for line in wrong if not line.startswith(OF_THE_TRIGGER)]
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
    return f"experiment {above.name}: {model}{taught}; {counted(len(configs['cells'].variants), 'variant')}"


def prune(cells: Path, params: dict[str, object]) -> None:
    """Remove images, embeddings and LoRAs of stages that have left the pipeline, which are in DVC's cache; a line for each.

    What dvc.lock does not list, what was changed since and what the cache does not have is left alone.
    """
    folders = [cells / name for name in ("embeddings", "images", "lora")]
    outs = [out for out in locked_outs() if out.path.parent in folders and out.path.exists()]
    gone = gone_stages({out.stage for out in outs}, params)
    present = {out.path for out in outs if out.stage not in gone}
    left = [out for out in outs if out.path not in present]
    cache = cache_folder() if left else Path()
    for out in left:
        if content_md5(out.path) != out.md5:
            print(f"{out.path}: of {out.stage}, which is gone, but changed since: left alone")
        elif not cached(out, cache):
            print(f"{out.path}: of {out.stage}, which is gone, but not in DVC's cache ({cache}): left alone")
        else:
            remove(out.path)
            print(f"{out.path}: removed, because {out.stage} is gone from the pipeline; DVC's cache has it")
    for path in sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        if path not in {out.path for out in outs} and not path.name.startswith("."):
            print(f"{path}: not listed in {LOCK}: left alone; the comparison does not show it")


if __name__ == "__main__":
    run(stage)
