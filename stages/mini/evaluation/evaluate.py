"""Measure the mini world on drawings and prompts held out from all training.

Reads the models and image sets of data/mini and, where they are, the images of the last pipeline run (--images). Prints every
figure with its target and the seconds that it took, and keeps the figures in metrics.json; sections that are not run keep
their old figures there. With --sheets it also writes contact sheets, red frames around what the judge found wrong.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.mini.drawings.labelled import LABELS, draw_held_out, draw_subject_held_out, together
from stages.mini.drawings.pixels import read_images
from stages.mini.drawings.portraits import JUDGED, STYLES
from stages.mini.drawings.sheets import write_sheet
from stages.mini.evaluation.judge import SUBJECT_COLOR, Judge, following, load_judge, subject_share, word_share
from stages.mini.evaluation.prompted_images import Prompt, draw_prompts, held_out_prompts, merged_models
from stages.mini.evaluation.targets import FINE_TUNES, PIXEL_ART_TARGETS, TARGETS, Figures

ALPHAS = tuple(step / 10 for step in range(11))
ANCESTOR_STYLES = ("adventurer", "micah", "toon-head", "personas")


@dataclass(frozen=True)
class World:
    """What is measured, and how thoroughly."""

    mini: Path
    images: Path
    subject_name: str
    samples: int
    device: torch.device
    judge: Judge
    sheets: Path | None

    def checkpoint(self, name: str) -> Path:
        """The single file of a fine-tune, or its folder.

        Raises:
            FileNotFoundError: there is neither.
        """
        for path in (self.mini / f"{name}.safetensors", self.mini / f"{name}.ckpt", self.mini / name):
            if path.exists():
                return path
        raise FileNotFoundError(f"{self.mini} holds no {name}.safetensors, {name}.ckpt or {name}/")

    def sheet(self, name: str, images: NDArray[np.uint8], columns: int = 20, right: Sequence[bool] | None = None) -> None:
        """Write a contact sheet, if sheets are wanted."""
        if self.sheets is not None:
            write_sheet(images, self.sheets / f"{name}.png", columns, right)


def measure_vae(world: World) -> Figures:
    """PSNR of held-out drawings after the VAE and back, in dB; higher is better."""
    from diffusers import AutoencoderKL

    from stages.mini.evaluation.reconstruction import psnr, reconstruct

    loaded: Any = AutoencoderKL.from_pretrained(world.mini / "base" / "vae", torch_dtype=torch.float32)
    vae = loaded.to(world.device).eval()
    figures = {}
    for style in ("adventurer", "micah", "pixel-art", "toon-head", "personas"):
        drawings = draw_held_out([style], world.samples)
        back = reconstruct(vae, drawings.images, world.device)
        figures[style] = round(psnr(drawings.images, back), 2)
        pairs = np.stack([drawings.images[:20], back[:20]]).reshape(-1, *back.shape[1:])
        world.sheet(f"vae-{style}", pairs)
    return figures


def measure_prompts(world: World) -> Figures:
    """The share of asked attributes that the judge finds: the ancestor with the style named, the fine-tunes without."""
    figures = {}
    plans = {"ancestor": (ANCESTOR_STYLES, True)} | {name: ((style,), False) for name, style in FINE_TUNES.items()}
    for name, (styles, named) in plans.items():
        path = world.mini / "base" if name == "ancestor" else world.checkpoint(name)
        prompts = held_out_prompts(styles, world.samples, named)
        figures[name] = _draw_and_judge(world, path, path, 0.0, prompts, name)
    return figures


def measure_merges(world: World) -> Figures:
    """For merges of toon (alpha 0) and anime (alpha 1): how many images are in anime's style, and how well they follow prompts.

    The prompts name no style. "largest_fall" is the most that anime's share falls from one alpha to the next, at least 0.
    """
    prompts = held_out_prompts(
        tuple(FINE_TUNES.values()), max(16, world.samples // 4), False, shown_by=tuple(FINE_TUNES.values())
    )
    theta0, theta1 = world.checkpoint("toon"), world.checkpoint("anime")
    figures = {}
    for alpha in ALPHAS:
        found = _draw_and_judge(world, theta0, theta1, alpha, prompts, f"merge-{alpha}")
        figures[str(alpha)] = {
            "anime": found["styles"]["adventurer"],
            "following": found["following"],
            "styles": found["styles"],
        }
    shares = [figure["anime"] for figure in figures.values()]
    falls = max([0.0, *(before - after for before, after in pairwise(shares))])
    return {"alphas": figures, "largest_fall": round(falls, 4)}


def _draw_and_judge(world: World, theta0: Path, theta1: Path, alpha: float, prompts: Sequence[Prompt], name: str) -> Figures:
    with merged_models(theta0, theta1, alpha, world.mini / "base", world.device) as models:
        images = draw_prompts(models, prompts, f"drawing with {name}")
    judged = world.judge.judge(images)
    asked = [prompt.attributes for prompt in prompts]
    counts = following(judged, asked)
    hits, total = (sum(counts[label][place] for label in JUDGED if label in counts) for place in (0, 1))
    world.sheet(name, images, right=[_follows(judged, words, index) for index, words in enumerate(asked)])
    return {
        "following": round(hits / total, 4),
        "by_attribute": {label: round(right / of, 4) for label, (right, of) in counts.items()},
        "right_style": round(float(np.mean([found == p.style for found, p in zip(judged["style"], prompts, strict=True)])), 4),
        "styles": {style: round(word_share(judged["style"], style), 4) for style in STYLES},
    }


def _follows(judged: Mapping[str, Sequence[str]], asked: Mapping[str, str], index: int) -> bool:
    return all(judged[label][index] == asked[label] for label in JUDGED if label in asked)


def measure_captioner(world: World) -> Figures:
    """The share of attributes that captions name right, on held-out drawings and on the subject's images."""
    from stages.dataset.captioner import load_blip
    from stages.mini.evaluation.caption_accuracy import describe, named_right

    blip, processor = load_blip(world.mini / "captioner", world.device, torch.float32)
    drawings = draw_held_out(tuple(STYLES), max(10, world.samples // 2))
    truths = [drawings.attributes(index) for index in range(len(drawings))]
    figures = {"held_out": named_right(describe(blip, processor.tokenizer, drawings.images), truths)}
    for name, style in (("asuka", "adventurer"), ("eight_bit", "pixel-art")):
        folder = world.mini / name
        if not (folder / "truth.csv").exists():
            continue
        images, words = _image_set(folder)
        found = named_right(describe(blip, processor.tokenizer, images), [(style, row) for row in words])
        figures[name] = found
        if name == "asuka":
            del found["hair"]  # the captioner has no word for hers
    return {name: shares | {"mean": _mean(shares)} for name, shares in figures.items()}


def _mean(shares: Mapping[str, float]) -> float:
    return round(float(np.mean(list(shares.values()))), 4)


def _image_set(folder: Path) -> tuple[NDArray[np.uint8], list[dict[str, str]]]:
    with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known = [{name: word for name, word in row.items() if name not in ("file_name", "caption") and word} for row in rows]
    return read_images([folder / row["file_name"] for row in rows]), known


def measure_scorer(world: World) -> Figures:
    """How often the scorer finds a drawing's caption among 50, and prefers it to one with an attribute changed."""
    from stages.drawing.embeddings import load_clip
    from stages.mini.evaluation.caption_ranking import ranked_above_changed, retrieved

    scorer = load_clip(world.mini / "scorer", world.device, torch.float32)
    tokenizer: Any = scorer.tokenizer
    drawings = draw_held_out(tuple(STYLES), max(10, world.samples // 2))
    return {
        "retrieved_among_50": retrieved(scorer.model, tokenizer, drawings),
        "ranked_above_changed": ranked_above_changed(scorer.model, tokenizer, drawings),
    }


def measure_dino(world: World) -> Figures:
    """How well the small DINOv2, which knows no label, tells the subject from others, and what its nearest drawings share.

    The subject's images are scored by their likeness to the first twelve of them, and so are held-out drawings of her style, of
    her style and hair colour, and with her twin tails in other colours: the chance that one of hers scores higher.
    """
    from transformers import Dinov2Model

    from stages.mini.evaluation.nearest_drawings import embed, neighbours_alike, told_apart

    dino = Dinov2Model.from_pretrained(world.mini / "dino", dtype=torch.float32).eval()
    figures: Figures = {"neighbours_alike": neighbours_alike(dino, draw_held_out(tuple(STYLES), world.samples))}
    hers = embed(dino, _image_set(world.mini / "asuka")[0])
    reference, rest = hers[:12].mean(axis=0), hers[12:]
    style, tails = draw_held_out(["adventurer"], world.samples), draw_subject_held_out(world.samples)
    red = LABELS["hair_color"].index(SUBJECT_COLOR)
    others = {
        "her_style": style,
        "her_style_and_colour": style.subset(np.flatnonzero(style.column("hair_color") == red)),
        "her_tails_in_other_colours": tails.subset(np.flatnonzero(tails.column("hair_color") != red)),
    }
    figures["told_apart_from"] = {
        name: round(told_apart(rest @ reference, embed(dino, drawings.images) @ reference), 4)
        for name, drawings in others.items()
    }
    return figures


def measure_judge(world: World) -> Figures:
    """The judge's own accuracy on held-out drawings, and on them with imitated defects."""
    from stages.mini.evaluation.judge_accuracy import accuracy, with_defects_once

    drawings = together(draw_held_out(tuple(STYLES), world.samples), draw_subject_held_out(world.samples))
    figures: Figures = {
        "clean": accuracy(world.judge, drawings),
        "with_defects": accuracy(world.judge, with_defects_once(drawings)),
    }
    if (world.mini / "asuka" / "truth.csv").exists():
        figures["asuka_features"] = round(subject_share(world.judge.judge(_image_set(world.mini / "asuka")[0])), 4)
    return figures


def measure_loras(world: World) -> Figures:
    """For each variant of the last pipeline run: the subject's features where the prompt names her, and the style shares."""
    figures = {}
    for folder in sorted(path.parent for path in world.images.glob("*/cells.csv")):
        with (folder / "cells.csv").open(newline="", encoding="utf-8") as file:
            cells = list(csv.DictReader(file))
        judged = world.judge.judge(images := read_images([folder / cell["file_name"] for cell in cells]))
        named = [index for index, cell in enumerate(cells) if world.subject_name in cell["prompt"].lower()]
        figure: Figures = {"images": len(cells)}
        if named:
            of_her = {label: [found[index] for index in named] for label, found in judged.items()}
            figure |= {"named": len(named), "subject": round(subject_share(of_her), 4)}
            figure["pixel_art"] = round(word_share(of_her["style"], "pixel-art"), 4)
            figure["twin_tails"] = round(word_share(of_her["hair"], "twin tails"), 4)
            figure["red"] = round(word_share(of_her["hair_color"], "red"), 4)
        if others := [index for index in range(len(cells)) if index not in named]:
            figure |= {"not_named": len(others)} | _kept_apart(judged, cells, others)
        figures[folder.name] = figure
        world.sheet(f"variant-{folder.name}", images)
    return figures


def _kept_apart(judged: Mapping[str, Sequence[str]], cells: Sequence[Mapping[str, str]], others: Sequence[int]) -> Figures:
    """Of the images that do not name the subject: how many have her features or are pixel art, and the hair that was asked."""
    apart = {label: [found[index] for index in others] for label, found in judged.items()}
    asked = {index: word for index in others if (word := asked_hair(cells[index]["prompt"]))}
    figures: Figures = {
        "leak": round(subject_share(apart), 4),
        "pixel_art_leak": round(word_share(apart["style"], "pixel-art"), 4),
    }
    if asked:
        hits = [judged["hair_color"][index] == word for index, word in asked.items()]
        figures |= {"hair_asked": len(hits), "hair_as_asked": round(sum(hits) / len(hits), 4)}
    return figures


def asked_hair(prompt: str) -> str:
    """The hair colour that a prompt names; "" for none."""
    phrases = (phrase.split() for phrase in prompt.split(",") if "hair" in phrase)
    return next((word for words in phrases for word in words if word in LABELS["hair_color"]), "")


SECTIONS: dict[str, Callable[[World], Figures]] = {
    "judge": measure_judge,
    "vae": measure_vae,
    "captioner": measure_captioner,
    "scorer": measure_scorer,
    "dino": measure_dino,
    "prompts": measure_prompts,
    "merges": measure_merges,
    "loras": measure_loras,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sections that are asked for."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    world = World(
        mini=options.mini,
        images=options.images,
        subject_name=options.subject,
        samples=options.samples,
        device=torch.device(options.device),
        judge=load_judge(options.mini / "judge"),
        sheets=options.sheets,
    )
    kept: Figures = json.loads(options.metrics.read_text()) if options.metrics.exists() else {}
    for name in options.only:
        start = time.monotonic()
        figures = SECTIONS[name](world)
        print(f"{name}: {time.monotonic() - start:.0f} s", json.dumps(figures), sep="\n  ")
        subsections = kept.setdefault(name, {}) if name == "loras" else kept
        subsections[options.experiment if name == "loras" else name] = figures
        targets = PIXEL_ART_TARGETS if name == "loras" and "8bit" in options.experiment else TARGETS
        print(*(target.line(figures) for target in targets if target.section == name), sep="\n", flush=True)
        options.metrics.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.mini.evaluation.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mini", type=Path, default=Path("data/mini"), help="the mini world (data/mini)")
    parser.add_argument("--images", type=Path, default=Path("data/images"), help="images of a pipeline run (data/images)")
    parser.add_argument("--experiment", default="mini", help="the experiment of that run, for metrics.json (mini)")
    parser.add_argument("--subject", default="asuka", help="the subject's name in prompts (asuka)")
    parser.add_argument("--metrics", type=Path, default=Path("data/mini/metrics.json"), help="where the figures are kept")
    parser.add_argument("--only", type=_sections, default=list(SECTIONS), help=f"sections, of {','.join(SECTIONS)} (all)")
    parser.add_argument("--samples", type=int, default=200, help="drawings of a style, and prompts of a model (200)")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _sections(text: str) -> list[str]:
    unknown = set(names := text.split(",")) - set(SECTIONS)
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: unknown; known are {', '.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    main()
