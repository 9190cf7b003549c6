"""How often the judge is right about drawings, clean ones and ones with defects."""

import torch

from stages.mini.drawings.defects import with_defects
from stages.mini.drawings.labelled import Labelled
from stages.mini.drawings.pixels import to_bytes, to_tensor
from stages.mini.drawings.portraits import SUBJECT_HAIR
from stages.mini.evaluation.judge import HEADS, Judge


def accuracy(judge: Judge, drawings: Labelled) -> dict[str, float]:
    """The share of right answers of each head, among the drawings that show its attribute.

    "twin_tails" is the share of drawings with visible hair for which the judge is right about twin tails or none.
    """
    judged = judge.judge(drawings.images)
    shares = {}
    for name, words in HEADS.items():
        shown = [
            (words[number], found) for number, found in zip(drawings.column(name), judged[name], strict=True) if number >= 0
        ]
        shares[name] = round(sum(truth == found for truth, found in shown) / len(shown), 4)
        if name == "hair":
            tails = [(truth == SUBJECT_HAIR) == (found == SUBJECT_HAIR) for truth, found in shown]
            shares["twin_tails"] = round(sum(tails) / len(tails), 4)
    return shares


def with_defects_once(drawings: Labelled) -> Labelled:
    """The same drawings with imitated defects, drawn from a fixed seed: the same defects at every call."""
    torch.manual_seed(1)
    return Labelled(to_bytes(with_defects(to_tensor(drawings.images))), drawings.labels)
