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

from stages.mini.drawings import JUDGED, STYLES
from stages.mini.generated import Prompt, draw_prompts, held_out_prompts, merged_models
from stages.mini.judge import Judge, following, load_judge, read_images, subject_share, word_share
from stages.mini.labelled import draw_held_out, draw_subject_held_out, together
from stages.mini.sheets import write_sheet

ALPHAS = tuple(step / 10 for step in range(11))
FINE_TUNES = {"anime": "adventurer", "toon": "micah"}
ANCESTOR_STYLES = ("adventurer", "micah", "toon-head", "personas")

Figures = dict[str, Any]


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

    from stages.mini.train_vae import psnr, reconstruct

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
    """Anime's style share and prompt following of merges of toon (alpha 0) and anime (alpha 1), prompts naming no style."""
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
    from stages.mini.train_captioner import describe, named_right

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
    """Retrieval among 50 captions, and the true caption against one with one attribute changed."""
    from stages.drawing.embeddings import load_scorer
    from stages.mini.scoring import ranked_above_changed, retrieved

    scorer = load_scorer(world.mini / "scorer", world.device, torch.float32)
    drawings = draw_held_out(tuple(STYLES), max(10, world.samples // 2))
    return {
        "retrieved_among_50": retrieved(scorer.model, scorer.tokenizer, drawings),
        "ranked_above_changed": ranked_above_changed(scorer.model, scorer.tokenizer, drawings),
    }


def measure_judge(world: World) -> Figures:
    """The judge's own accuracy on held-out drawings, and on them with imitated defects."""
    from stages.mini.train_judge import accuracy, with_defects_once

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
        figure: Figures = {"images": len(cells), "pixel_art": round(word_share(judged["style"], "pixel-art"), 4)}
        if named:
            of_her = {label: [found[index] for index in named] for label, found in judged.items()}
            figure |= {"named": len(named), "subject": round(subject_share(of_her), 4)}
            figure["twin_tails"] = round(word_share(of_her["hair"], "twin tails"), 4)
            figure["red"] = round(word_share(of_her["hair_color"], "red"), 4)
        figures[folder.name] = figure
        world.sheet(f"variant-{folder.name}", images)
    return figures


SECTIONS: dict[str, Callable[[World], Figures]] = {
    "judge": measure_judge,
    "vae": measure_vae,
    "captioner": measure_captioner,
    "scorer": measure_scorer,
    "prompts": measure_prompts,
    "merges": measure_merges,
    "loras": measure_loras,
}


@dataclass(frozen=True)
class Target:
    """A figure that the mini world must reach.

    Attributes:
        section: a key of SECTIONS.
        words: what it is.
        figure: reads it from the section's figures; None where it was not measured.
        least: the least that is enough; None where `most` counts.
        most: the most that is allowed.
    """

    section: str
    words: str
    figure: Callable[[Figures], float | None]
    least: float | None = None
    most: float | None = None

    def line(self, figures: Figures) -> str:
        """The figure, its target, and whether it is reached."""
        value = self.figure(figures)
        wanted = f">= {self.least}" if self.least is not None else f"<= {self.most}"
        if value is None:
            return f"  {self.words:<62} {'-':>8}  {wanted:<8} not measured"
        reached = value >= self.least if self.least is not None else value <= (self.most or 0.0)
        return f"  {self.words:<62} {value:>8.3f}  {wanted:<8} {'reached' if reached else 'MISSED'}"


def _at(*path: str) -> Callable[[Figures], float | None]:
    def read(figures: Figures) -> float | None:
        value: Any = figures
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    return read


def _extreme(choose: Callable[[list[float]], float], prefixes: tuple[str, ...], key: str) -> Callable[[Figures], float | None]:
    def read(figures: Figures) -> float | None:
        values = [figure[key] for variant, figure in figures.items() if variant.startswith(prefixes) and key in figure]
        return choose(values) if values else None

    return read


def _least_accuracy(part: str) -> Callable[[Figures], float | None]:
    return lambda figures: min(figures[part].values())


ADAPTED, UNADAPTED = ("text2img-", "dreambooth-"), ("a0", "a1", "theta")
TARGETS = (
    Target("judge", "judge: the worst head on held-out drawings", _least_accuracy("clean"), least=0.97),
    *(Target("vae", f"VAE: PSNR of {style}, dB", _at(style), least=28.0) for style in ("adventurer", "micah", "pixel-art")),
    *(
        Target("prompts", f"prompt following: {name}", _at(name, "following"), least=0.85)
        for name in ("ancestor", "anime", "toon")
    ),
    *(Target("prompts", f"style: {name} draws in its own", _at(name, "right_style"), least=0.95) for name in FINE_TUNES),
    Target("merges", "merges: largest fall of anime's share from one alpha to the next", _at("largest_fall"), most=0.02),
    Target("merges", "merges: prompt following at alpha 0.5", _at("alphas", "0.5", "following"), least=0.6),
    Target("captioner", "captioner: attributes named right, held-out drawings", _at("held_out", "mean"), least=0.9),
    Target("captioner", "captioner: attributes named right, asuka", _at("asuka", "mean"), least=0.9),
    Target("scorer", "scorer: right caption among 50", _at("retrieved_among_50"), least=0.9),
    Target("scorer", "scorer: true caption above one changed", _at("ranked_above_changed", "all"), least=0.9),
    Target("loras", "subject's features with a LoRA, the lowest", _extreme(min, ADAPTED, "subject"), least=0.8),
    Target("loras", "subject's features without, the highest", _extreme(max, UNADAPTED, "subject"), most=0.2),
)
PIXEL_ART_TARGETS = (
    Target("loras", "pixel art with a LoRA, the lowest", _extreme(min, ADAPTED, "pixel_art"), least=0.8),
    Target("loras", "pixel art without, the highest", _extreme(max, UNADAPTED, "pixel_art"), most=0.1),
)


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
        prog="python -m stages.mini.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
