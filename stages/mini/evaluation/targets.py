"""What the mini world's figures must reach."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]

FINE_TUNES = {"anime": "adventurer", "toon": "micah"}
"""The fine-tunes, and the style that each draws in."""


@dataclass(frozen=True)
class Target:
    """A figure that the mini world must reach.

    Attributes:
        section: of the evaluation, a key of `evaluate.SECTIONS`.
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
    """Over the variants of some kinds; LoRAs on the way, or at another strength than 1, need not reach anything."""

    def counts(variant: str) -> bool:
        return variant.startswith(prefixes) and not re.search(r"-step\d|-x[\d-]", variant)

    def read(figures: Figures) -> float | None:
        values = [figure[key] for variant, figure in figures.items() if counts(variant) and key in figure]
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
    Target("dino", "DINOv2: her from others of her style", _at("told_apart_from", "her_style"), least=0.97),
    Target("dino", "DINOv2: her from others with red hair", _at("told_apart_from", "her_style_and_colour"), least=0.9),
    Target("dino", "DINOv2: her from other twin tails", _at("told_apart_from", "her_tails_in_other_colours"), least=0.97),
    Target("loras", "subject's features with a LoRA, the lowest", _extreme(min, ADAPTED, "subject"), least=0.85),
    Target("loras", "subject's features where she is not named, the highest", _extreme(max, ADAPTED, "leak"), most=0.1),
    Target("loras", "hair as asked where she is not named, the lowest", _extreme(min, ADAPTED, "hair_as_asked"), least=0.85),
    Target("loras", "subject's features without, the highest", _extreme(max, UNADAPTED, "subject"), most=0.2),
)
PIXEL_ART_TARGETS = (
    Target("loras", "pixel art with a LoRA, the lowest", _extreme(min, ADAPTED, "pixel_art"), least=0.9),
    Target("loras", "pixel art where it is not asked for, the highest", _extreme(max, ADAPTED, "pixel_art_leak"), most=0.05),
    Target("loras", "pixel art without, the highest", _extreme(max, UNADAPTED, "pixel_art"), most=0.1),
)
