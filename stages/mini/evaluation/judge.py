"""The judge: a small classifier of what a picture shows. It grades generated images and shares no weights with the scorer."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.mini.drawings.labelled import LABELS
from stages.mini.drawings.pixels import to_tensor
from stages.mini.drawings.portraits import SUBJECT_HAIR

HEADS: dict[str, tuple[str, ...]] = {
    name: LABELS[name] for name in ("style", "hair_color", "hair", "skin", "glasses", "clothes", "background")
}
"""What the judge classifies, with the classes. Expression and earrings are left out: they are a few pixels at this size."""
WIDTHS = (24, 48, 64, 96)
WEIGHTS = "judge.safetensors"
SUBJECT_COLOR = "red"


class Judge(nn.Module):
    """A residual CNN with one linear head a label."""

    def __init__(self, heads: Mapping[str, Sequence[str]] | None = None, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.words = {name: tuple(words) for name, words in (heads or HEADS).items()}
        self.widths = tuple(widths)
        stages = [_convolution(3, widths[0], 5)]
        stages += [_Stage(narrow, wide) for narrow, wide in pairwise(widths)]
        self.features = nn.Sequential(*stages)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * widths[-1], len(words)) for name, words in self.words.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, words) of every head; images: (B, 3, 64, 64) in [-1, 1]."""
        features = self.features(images.contiguous(memory_format=torch.channels_last))
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        return {name: head(pooled) for name, head in self.heads.items()}

    @torch.no_grad()
    def judge(self, images: NDArray[np.uint8], batch_size: int = 64) -> dict[str, list[str]]:
        """The likeliest word of every head for each image; images: (N, 64, 64, 3)."""
        self.eval()
        found: dict[str, list[str]] = {name: [] for name in self.words}
        for start in range(0, len(images), batch_size):
            logits = self(to_tensor(images[start : start + batch_size]).to(next(self.parameters()).device))
            for name, words in self.words.items():
                found[name] += [words[number] for number in logits[name].argmax(1).tolist()]
        return found

    def save(self, folder: Path) -> None:
        """Write the weights in float16, with the heads in the file's metadata."""
        folder.mkdir(parents=True, exist_ok=True)
        halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in self.state_dict().items()}
        description = json.dumps({"heads": self.words, "widths": self.widths})
        save_file({name: tensor.contiguous() for name, tensor in halves.items()}, folder / WEIGHTS, {"judge": description})


class _Stage(nn.Module):
    """A convolution that halves the sides, and a second one as a residual."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.down = _convolution(narrow, wide, 3)
        self.same = _convolution(wide, wide, 3, stride=1)

    def forward(self, images: Tensor) -> Tensor:
        halved = self.down(images)
        return halved + self.same(halved)


def _convolution(narrow: int, wide: int, kernel: int, stride: int = 2) -> nn.Sequential:
    convolution = nn.Conv2d(narrow, wide, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wide), nn.ReLU(inplace=True))


def load_judge(folder: Path) -> Judge:
    """Load what `Judge.save` wrote, in float32 and ready to judge.

    Raises:
        FileNotFoundError: there is no judge in the folder.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; train it with python -m stages.mini.training.train_judge")
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["judge"])
        judge = Judge(description["heads"], description["widths"])
        judge.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return judge.eval()


def subject_share(judged: Mapping[str, Sequence[str]]) -> float:
    """The share of images in which the judge found both of the subject's features, red hair and twin tails."""
    both = [
        hair == SUBJECT_HAIR and color == SUBJECT_COLOR
        for hair, color in zip(judged["hair"], judged["hair_color"], strict=True)
    ]
    return sum(both) / len(both)


def word_share(judged: Sequence[str], word: str) -> float:
    """The share of images for which the judge said `word`."""
    return sum(found == word for found in judged) / len(judged)


def following(judged: Mapping[str, Sequence[str]], asked: Sequence[Mapping[str, str]]) -> dict[str, tuple[int, int]]:
    """For each head, how often the judge found the word that was asked for, and how often one was asked for."""
    counts: dict[str, tuple[int, int]] = {}
    for index, attributes in enumerate(asked):
        for name in attributes.keys() & judged.keys():
            hits, total = counts.get(name, (0, 0))
            counts[name] = hits + (judged[name][index] == attributes[name]), total + 1
    return dict(sorted(counts.items()))
