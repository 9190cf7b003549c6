"""Train the judge on drawings of every style, the subject's hair in any colour among them, with imitated defects.

Reads <work>/drawings and draws twin tails of its own. Writes <out>/judge.safetensors and <out>/accuracy.json, the share of
right answers on held-out drawings. Run again to resume.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.mini.drawings.defects import with_defects
from stages.mini.drawings.labelled import NOT_SHOWN, Labelled, drawn_set, subject_set, together
from stages.mini.drawings.pixels import to_tensor
from stages.mini.evaluation.judge import HEADS, Judge
from stages.mini.evaluation.judge_accuracy import accuracy, with_defects_once
from stages.mini.training.fitting import Plan, arguments_of, begin, budget_of, fit, forget, generator_of

MINUTES = 15.0
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
SUBJECT_COUNTS = {"train": 3000, "held-out": 300}
TINY_COUNT = 8
TINY_WIDTHS = (16, 16, 16, 16)


def loss(judge: Judge, drawings: Labelled) -> Tensor:
    """The sum of the heads' cross-entropies on drawings with defects."""
    device = next(judge.parameters()).device
    logits = judge(with_defects(to_tensor(drawings.images)).to(device))
    total = torch.zeros((), device=device)
    for name in HEADS:
        wanted = torch.from_numpy(drawings.column(name)).long().to(device)
        if (wanted != NOT_SHOWN).any():
            total = total + F.cross_entropy(logits[name], wanted, ignore_index=NOT_SHOWN, label_smoothing=0.02)
    return total


def labelled_drawings(work: Path, part: str, tiny: bool = False) -> Labelled:
    """Every style's drawings of a part, and twin tails."""
    return together(drawn_set(work, part), subject_set(work, part, TINY_COUNT if tiny else SUBJECT_COUNTS[part]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and save."""
    parser = arguments_of("python -m stages.mini.training.train_judge", __doc__, MINUTES)
    parser.add_argument("--out", type=Path, required=True, help="folder for the judge")
    options = parser.parse_args(arguments)
    device = begin(options)
    drawings = labelled_drawings(options.work, "train", options.tiny)
    judge = Judge(widths=TINY_WIDTHS) if options.tiny else Judge()
    judge.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    plan = _plan(options)
    fit(judge.train(), lambda step: loss(judge, _batch(drawings, step)), plan)
    judge.to("cpu").eval().save(options.out)
    held_out = labelled_drawings(options.work, "held-out", options.tiny)
    figures = {"clean": accuracy(judge, held_out), "with_defects": accuracy(judge, with_defects_once(held_out))}
    (options.out / "accuracy.json").write_text(json.dumps(figures, indent=2) + "\n")
    forget(plan.checkpoint)
    print(json.dumps(figures, indent=2))


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        label="training judge",
        budget=budget_of(options, MINUTES),
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        ema_decay=0.98,
        checkpoint=options.work / "judge.pt",
    )


def _batch(drawings: Labelled, step: int) -> Labelled:
    torch.manual_seed(step)
    return drawings.subset(torch.randint(len(drawings), (BATCH_SIZE,), generator=generator_of(2, step)).numpy())


if __name__ == "__main__":
    main()
