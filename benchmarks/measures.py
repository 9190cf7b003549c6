"""Do the measures see what they are for? Defects are planted in the mini world, where the truth is known.

`python benchmarks/measures.py [--json FILE]` makes image sets as a LoRA would draw them, from drawings of the mini world: some
without a fault, and as many with each planted defect. A set has six prompts that name the subject and six that do not, with
four seeds each. For each measure and defect it prints the area under the ROC curve with its 95 % interval: the chance that a
set with the defect has a worse value than one without (0.5: the measure does not see it). Then it prints how many planted
copies, and how many held-out images, are taken for copies. Takes about ten minutes on two cores; the drawings take the extra
`mini`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from PIL import Image  # noqa: E402

from stages.drawing.embeddings import Encoder, embed_texts, load_clip, load_dino  # noqa: E402
from stages.measures import likeness  # noqa: E402
from stages.measures.comparing import BY_KEY, estimate  # noqa: E402
from stages.measures.embedded_files import Embedded  # noqa: E402
from stages.measures.measuring import Dataset, dataset_of, measure  # noqa: E402
from stages.measures.statistics import area_under_curve  # noqa: E402
from stages.mini.drawings.defects import with_defects  # noqa: E402
from stages.mini.drawings.pixels import read_images, to_bytes, to_tensor  # noqa: E402
from stages.mini.drawings.portraits import ADVENTURER, BACKGROUNDS, HAIR_COLORS, SUBJECT_HAIR, draw  # noqa: E402
from stages.pipeline.progress import track  # noqa: E402

MINI = ROOT / "data/mini"
PROMPTS, SEEDS = 6, 4
SUBJECT = {"hair": SUBJECT_HAIR, "hair_color": "red", "skin": "light"}
SPLITS = 50
FIRST_SEED = 3_000_000
"""Drawings of other seeds than those that the models of the mini world have seen."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Shown:
    """What the images of a set show: for each prompt, its text and the attributes of each of its drawings."""

    prompts: list[str]
    asks: NDArray[np.bool_]
    drawings: list[list[dict[str, str]]]


def clean(rng: Random) -> Shown:
    """A set without a fault: her where she is named, others where she is not, each as its prompt says."""
    prompts, drawings = [], []
    for number in range(2 * PROMPTS):
        asked = {"background": rng.choice(list(BACKGROUNDS)), "expression": rng.choice(["smiling", "serious", "surprised"])}
        if number < PROMPTS:
            prompts.append(f"asuka, {asked['expression']}, {asked['background']} background")
            drawings.append([SUBJECT | asked] * SEEDS)
        else:
            colour = rng.choice([name for name in HAIR_COLORS if name != "red"])
            asked |= {"hair_color": colour, "hair": rng.choice(["long", "short"])}
            words = f"{asked['hair_color']} {asked['hair']} hair, {asked['expression']}, {asked['background']} background"
            prompts.append(f"anime portrait, {words}")
            drawings.append([asked] * SEEDS)
    return Shown(prompts, np.arange(2 * PROMPTS) < PROMPTS, drawings)


def changed(shown: Shown, where: NDArray[np.bool_], change: Callable[[dict[str, str]], dict[str, str]]) -> Shown:
    """A set whose drawings for some prompts are others than those that were asked for."""
    drawings = [
        [change(each) for each in of_prompt] if here else of_prompt
        for of_prompt, here in zip(shown.drawings, where, strict=True)
    ]
    return Shown(shown.prompts, shown.asks, drawings)


def wrong_colour(shown: Shown, rng: Random) -> Shown:
    """Her twin tails in another colour."""
    return changed(shown, shown.asks, lambda each: each | {"hair_color": rng.choice(["blond", "black", "brown"])})


def background_leak(shown: Shown, _rng: Random) -> Shown:
    """Where she is not named, the background that her training images would have brought along: always blue."""
    return changed(shown, ~shown.asks, lambda each: each | {"background": "blue"})


def ignored_name(shown: Shown, rng: Random) -> Shown:
    """Where she is named, anybody."""

    def anybody(each: dict[str, str]) -> dict[str, str]:
        return each | {"hair": rng.choice(["long", "short"]), "hair_color": rng.choice(list(HAIR_COLORS)), "skin": "light"}

    return changed(shown, shown.asks, anybody)


def over_training(shown: Shown, _rng: Random) -> Shown:
    """Her everywhere."""
    return changed(shown, ~shown.asks, lambda each: {**each, **SUBJECT})


Drawn = Callable[[Shown, Random, int], Pixels]
DEFECTS: dict[str, Callable[[Shown, Random], Shown]] = {
    "wrong colour": wrong_colour,
    "background leak": background_leak,
    "ignored name": ignored_name,
    "over-training": over_training,
}
OF_PIXELS = ("copies", "collapsed diversity")
"""Defects that are no matter of what is drawn."""
EXPECTED = {
    "copies": "copying",
    "wrong colour": "subject_fidelity",
    "background leak": "prompt_alignment_other",
    "collapsed diversity": "diversity",
    "ignored name": "trigger_specificity",
    "over-training": "leak",
}
"""The measure that each defect is the business of."""


def pixels_of(shown: Shown, first_seed: int, spread: float) -> Pixels:
    """The drawings of a set, (P S, 64, 64, 3), smudged as generated images are."""
    images = []
    for number, of_prompt in enumerate(shown.drawings):
        for seed, attributes in enumerate(of_prompt):
            image, _ = draw(ADVENTURER.name, first_seed + number * SEEDS + seed, attributes)
            images.append(np.asarray(image))
    return smudged(np.stack(images), spread)


def smudged(images: Pixels, spread: float) -> Pixels:
    """Images on the way to their imitated defects, so far that they look generated; `spread` of the way."""
    clear = to_tensor(images)
    return to_bytes(clear + spread * (with_defects(clear) - clear))


def collapsed(images: Pixels) -> Pixels:
    """Every image of a prompt the same."""
    return np.repeat(images[::SEEDS], SEEDS, axis=0)


def copied(images: Pixels, training: Pixels, rng: Random) -> Pixels:
    """Training images in the place of half of the images that name her."""
    found = images.copy()
    for place in rng.sample(range(PROMPTS * SEEDS), PROMPTS * SEEDS // 2):
        found[place] = training[rng.randrange(len(training))]
    return found


@torch.inference_mode()
def embed(encoder: Encoder, images: Pixels) -> NDArray[np.float32]:
    """Embeddings of images, (N, D), of length 1; all together, because here speed counts more than bytes."""
    rows = []
    for start in range(0, len(images), 64):
        batch = np.stack([encoder.preprocessing(Image.fromarray(image)) for image in images[start : start + 64]])
        taken = torch.from_numpy(batch)
        output: Any = encoder.model(taken) if encoder.tokenizer is None else encoder.model.get_image_features(taken)
        rows.append(torch.nn.functional.normalize(output.pooler_output, dim=-1))
    return torch.cat(rows).numpy()


@dataclass(frozen=True)
class Bench:
    """The encoders, and the dataset that a LoRA would have learnt from."""

    encoders: Mapping[str, Encoder]
    training: Pixels
    dataset: Dataset

    def values(self, shown: Shown, images: Pixels, before: Pixels) -> dict[str, float]:
        """Every measure of one set."""
        clip = self.encoders["clip"]
        texts = np.asarray(embed_texts(clip, shown.prompts))
        embedded, of_before = (self._embedded(pixels, texts, shown.prompts) for pixels in (images, before))
        found = measure(embedded, of_before, self.dataset, [()] * len(shown.prompts), SEEDS)
        return {
            key: each.wanted * estimate(each, found.by_prompt(each.metric)[None], shown.asks).mean
            for key, each in BY_KEY.items()
        }

    def _embedded(self, pixels: Pixels, texts: NDArray[np.float32], prompts: Sequence[str]) -> Embedded:
        rows = {name: embed(encoder, pixels) for name, encoder in self.encoders.items()}
        names = [str(number) for number in range(len(pixels))]
        return Embedded(rows, texts, names, names, prompts, {}, "")


def load_bench() -> Bench:
    """The encoders of the mini world, and its images of the subject: 100 to learn from, 12 held out."""
    cpu = torch.device("cpu")
    encoders = {
        "clip": load_clip(MINI / "scorer", cpu, torch.float32),
        "dino": load_dino(MINI / "dino", cpu, torch.float32),
    }
    pixels = read_images(sorted((MINI / "asuka").glob("*.png")))
    names = [str(number) for number in range(len(pixels))]
    rows = {name: embed(encoder, pixels) for name, encoder in encoders.items()}
    nothing = np.zeros((0, 1), dtype=np.float32)
    held_out = [str(number) for number in Random(0).sample(range(len(pixels)), 12)]
    dataset = dataset_of(Embedded(rows, nothing, names, names, [], {}, ""), held_out)
    return Bench(encoders, np.stack([pixels[int(name)] for name in dataset.training_names]), dataset)


def run(sets: int, spread: float) -> tuple[dict[str, dict[str, list[float]]], Bench]:
    """The values of every measure, by defect ("none" for sets without) and measure."""
    bench = load_bench()
    found: dict[str, dict[str, list[float]]] = {}
    kinds = ("none", *DEFECTS, *OF_PIXELS)
    work = [(kind, number) for number in range(sets) for kind in kinds]
    for kind, number in track(work, "image sets", total=len(work)):
        rng = Random(f"{kind} {number}")
        torch.manual_seed(rng.randrange(2**31))
        seed = FIRST_SEED + 1000 * (kinds.index(kind) * sets + number)
        shown = clean(rng)
        before = pixels_of(changed(shown, shown.asks, lambda each: each | {"hair": "long"}), seed, spread)
        images = pixels_of(DEFECTS[kind](shown, rng) if kind in DEFECTS else shown, seed, spread)
        if kind == "copies":
            images = copied(images, bench.training, rng)
        if kind == "collapsed diversity":
            images = collapsed(images)
        for key, value in bench.values(shown, images, before).items():
            found.setdefault(kind, {}).setdefault(key, []).append(value)
    return found, bench


def copies(bench: Bench, spread: float) -> dict[str, float]:
    """The share of images that are taken for copies: training images as they are, slightly smudged, and held-out images.

    The mean over `SPLITS` random choices of twelve images to hold out.
    """
    torch.manual_seed(0)
    dino, both = bench.encoders["dino"], (bench.dataset.training["dino"], bench.dataset.references["dino"])
    every, twice = np.concatenate(both), embed(dino, smudged(bench.training, spread))
    shares: dict[str, list[float]] = {"planted copies": [], "planted copies, smudged": [], "held-out images": []}
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(len(every))
        training, held_out = every[order[12:]], every[order[:12]]
        smudges = twice[[place for place in range(len(twice)) if place in order[12:]]]
        for name, rows in zip(shares, (training, smudges, held_out), strict=True):
            shares[name].append(float(likeness.copied(rows, training).mean()))
    return {name: float(np.mean(of_splits)) for name, of_splits in shares.items()}


def main() -> None:
    """Plant, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=40, help="image sets of each kind (40)")
    parser.add_argument("--spread", type=float, default=0.3, help="how far images are smudged, in [0, 1] (0.3)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found, bench = run(options.sets, options.spread)
    areas = {
        defect: {key: area_under_curve(found["none"][key], values) for key, values in of_defect.items()}
        for defect, of_defect in found.items()
        if defect != "none"
    }
    shares = copies(bench, options.spread)
    print(f"area under the ROC curve [95 % interval], {options.sets} image sets with each defect and as many without\n")
    print("| measure | " + " | ".join(areas) + " |\n|---|" + "---|" * len(areas))
    for key in BY_KEY:
        cells = []
        for defect, by_measure in areas.items():
            area = by_measure[key]
            text = f"{area.mean:.2f} [{area.low:.2f}, {area.high:.2f}]"
            cells.append(f"**{text}**" if EXPECTED[defect] == key else text)
        print(f"| {key} | " + " | ".join(cells) + " |")
    print("\ntaken for copies:", ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    if options.json:
        figures = {defect: {key: vars(area) for key, area in by_measure.items()} for defect, by_measure in areas.items()}
        options.json.write_text(json.dumps({"areas": figures, "copies": shares}, indent=2) + "\n")


if __name__ == "__main__":
    main()
