"""Originals, noise schedulers, text encoders, and the models that look at images."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.checkpoints.merging.methods import MERGE_METHODS
from stages.drawing.noise_schedulers import NOISE_SCHEDULERS
from stages.pipeline.checks.remarks import Configs, Finding, note, refuse

SMALL_WORLD = Path("data/mini")


def originals(configs: Configs) -> Iterator[Finding]:
    """As many originals as the merge takes, and what else is taken from those that are not there."""
    method, base = configs["merge"].method, configs["base"]
    needed = MERGE_METHODS[method].models
    for number, (name, checkpoint) in enumerate({"theta1": base.theta1, "theta2": base.theta2}.items(), start=2):
        given = checkpoint is not None
        if given != (number <= needed):
            said = "which is null: name a checkpoint" if not given else "which is not null: set it to null"
            how = "takes" if number <= needed else "does not take"
            yield refuse(f"merge.method: {method} {how} base.{name}, {said}, or choose another method")
    if base.theta1 is None and configs["merge"].text_encoder == "theta1":
        yield refuse("merge.text_encoder: given 'theta1': base.theta1 is null; take merged or theta0")
    if base.theta1 is None and configs["vae"].source in ("theta1", "merged"):
        yield refuse(f"vae.source: given {configs['vae'].source!r}: base.theta1 is null; take theta0 or other")
    if base.theta1 is None and "theta1" in configs["sweep"].bases:
        yield refuse("sweep.bases: names theta1, and base.theta1 is null: take it out")


def zero_snr(configs: Configs) -> Iterator[Finding]:
    """Noise schedulers that cannot begin where the merge is to begin."""
    if not configs["merge"].rescale_betas_zero_snr:
        return
    drawn = ("class_images",) if configs["class_images"].num_class_images else ()
    for stage in (*drawn, "generate"):
        name = configs[stage].noise_scheduler
        if not NOISE_SCHEDULERS[name].zero_snr:
            yield refuse(
                f"{stage}.noise_scheduler: given {name!r}: it cannot begin in noise alone: take ddim, euler or dpmsolver++"
            )


def layers(configs: Configs) -> Iterator[Finding]:
    """Layers of the text encoder that cannot all be left out."""
    layers = _text_layers(configs["base"].theta0)
    dreambooth = ("train_dreambooth",) if configs["sweep"].dreambooth_rank else ()
    drawn = ("class_images",) if configs["class_images"].num_class_images else ()
    stages = ("encode_captions", *drawn, *dreambooth, "generate")
    for stage in stages:
        skipped = configs[stage].clip_skip
        if layers is not None and skipped >= layers:
            yield refuse(f"{stage}.clip_skip: given {skipped}: theta0's text encoder has {layers} layers")
    common = configs[""].clip_skip
    for stage in stages:
        if (skipped := configs[stage].clip_skip) != common:
            yield note(f"{stage}.clip_skip: {skipped}, and clip_skip is {common}: training and drawing should read one layer")


def _text_layers(original: Any) -> int | None:
    """How many layers the text encoder of an original has, if its config.json is on this machine."""
    for source in (original.source, original.config):
        path = source and source.path and source.path / "text_encoder" / "config.json"
        if path and path.is_file():
            try:
                return int(json.loads(path.read_text()).get("num_hidden_layers", 12))
            except (ValueError, TypeError, AttributeError):
                return None
    return None


def looking_models(configs: Configs) -> Iterator[Finding]:
    """Models that look at images: whether they are there, and whether these are images that they know."""
    images = getattr(configs["download"].source, "path", None)
    foreign = images is None or not _is_below(images, SMALL_WORLD)
    for setting, source in (
        ("caption.model", configs["caption"].model),
        ("embed.clip", configs["embed"].clip),
        ("embed.dino", configs["embed"].dino),
    ):
        path = source and source.path
        if path and not (path / "config.json").is_file():
            yield refuse(f"{setting}.path: {path} is no model in the transformers layout: config.json is missing in it")
        if path and foreign and _is_below(path, SMALL_WORLD):
            if setting == "caption.model":
                alone = f"{path} knows the drawings of {SMALL_WORLD} and nothing else"
                yield refuse(f"{setting}: {alone}: take caption/model=blip_base")
            else:
                yield note(f"{setting}: {path} knows the drawings of {SMALL_WORLD} alone: its measures will mean nothing")


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
