"""Train the small DINOv2: two views of one drawing close together, other drawings far away. No label is read.

Reads <work>/drawings, without the subject's twin tails. Writes the model and its image processor to --out, weights in float16,
and <work>/dino.json with its figures on held-out drawings. Run again to resume.

The architecture is DINOv2's (Oquab et al. 2023, arXiv:2304.07193). The objective is SimCLR's (Chen et al. 2020,
arXiv:2002.05709, section 2), which needs no teacher and no large batch on so few drawings.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from stages.mini.drawings.defects import with_defects
from stages.mini.drawings.labelled import Labelled, drawn_set
from stages.mini.drawings.pixels import to_tensor
from stages.mini.drawings.portraits import SIZE
from stages.mini.evaluation.nearest_drawings import neighbours_alike
from stages.mini.training.fitting import Plan, arguments_of, begin, budget_of, fit, forget, generator_of
from stages.pipeline.outputs import atomic_directory

MINUTES = 25.0
BATCH_SIZE = 96
LEARNING_RATE = 1.5e-3
TEMPERATURE = 0.15
WIDTH, LAYERS, HEADS, PATCH = 96, 4, 4, 8
PROJECTED = 64
SMALLEST_CROP = 0.7
"""Side of the smallest crop, as a share of the drawing's: hair ends at the edge, and a smaller crop would lose it."""


class Training(nn.Module):
    """DINOv2 with SimCLR's projection head, which is left out of what is saved."""

    def __init__(self, dino: Dinov2Model) -> None:
        super().__init__()
        self.dino = dino
        width: int = dino.config.hidden_size
        self.projection = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, PROJECTED))

    def forward(self, views: Tensor) -> Tensor:
        """The loss of 2 B views, (2 B, 3, H, W) in [-1, 1]: the n-th and the (B + n)-th are of the same drawing."""
        projected = F.normalize(self.projection(self.dino(views).pooler_output), dim=-1)
        logits = projected @ projected.T / TEMPERATURE
        logits.fill_diagonal_(float("-inf"))
        return F.cross_entropy(logits, torch.arange(len(views), device=views.device).roll(len(views) // 2))


def build(layers: int = LAYERS) -> Dinov2Model:
    """A DINOv2 for 64 px images."""
    config = Dinov2Config(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        layerscale_value=0.3,
        use_mask_token=False,
    )
    return Dinov2Model(config)


def image_processor() -> BitImageProcessorPil:
    """An image processor that makes 64 px images in [-1, 1]."""
    sides = {"height": SIZE, "width": SIZE}
    return BitImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=sides, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def view(images: Tensor) -> Tensor:
    """Another look at images, (B, 3, H, W) in [-1, 1]: mirrored, shifted, cropped, smudged and tinted at random."""
    sides = SMALLEST_CROP + (1 - SMALLEST_CROP) * torch.rand(len(images))
    centres = (1 - sides)[:, None] * (2 * torch.rand(len(images), 2) - 1)
    crops = torch.zeros(len(images), 2, 3)
    crops[:, 0, 0] = crops[:, 1, 1] = sides
    crops[:, :, 2] = centres
    grid = F.affine_grid(crops, list(images.shape), align_corners=False)
    return with_defects(F.grid_sample(images, grid, padding_mode="border", align_corners=False))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and save."""
    parser = arguments_of("python -m stages.mini.training.train_dino", __doc__, MINUTES)
    parser.add_argument("--out", type=Path, required=True, help="folder for the small DINOv2")
    options = parser.parse_args(arguments)
    device = begin(options)
    drawings = drawn_set(options.work, "train")
    training = Training(build(1 if options.tiny else LAYERS)).to(device).train()
    plan = _plan(options)
    fit(training, lambda step: training(_views(drawings, step).to(device)), plan)
    dino = training.dino.to("cpu").eval()  # pyright: ignore[reportArgumentType, reportCallIssue]
    figures = neighbours_alike(dino, drawn_set(options.work, "held-out", 200))
    (options.work / "dino.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))
    with atomic_directory(options.out) as folder:
        dino.half().save_pretrained(folder)
        image_processor().save_pretrained(folder)
    forget(plan.checkpoint)


def _views(drawings: Labelled, step: int) -> Tensor:
    torch.manual_seed(step)
    rows = torch.randint(len(drawings), (BATCH_SIZE,), generator=generator_of(6, step))
    images = to_tensor(drawings.subset(rows.numpy()).images)
    return torch.cat([view(images), view(images)])


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        label="training dino",
        budget=budget_of(options, MINUTES),
        learning_rate=LEARNING_RATE,
        weight_decay=0.02,
        ema_decay=0.99,
        checkpoint=options.work / "dino.pt",
    )


if __name__ == "__main__":
    main()
