"""Train the scorer, a small CLIP: drawings and their captions close together, captions that are wrong by one word far away.

Reads <work>/drawings, without the subject's twin tails, and the captioner, from whose image tower the scorer's begins.
Writes the model and its processor to --out, weights in float16, and <work>/scorer.json with its figures on held-out drawings.
Run again to resume.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from stages.mini.drawings.caption_attributes import changed, varied
from stages.mini.drawings.defects import moved, with_defects
from stages.mini.drawings.labelled import Labelled, drawn_set
from stages.mini.drawings.pixels import to_tensor
from stages.mini.drawings.portraits import SIZE, caption
from stages.mini.evaluation.caption_ranking import ranked_above_changed, retrieved, unit_texts
from stages.mini.training.attribute_heads import attribute_heads, heads_loss
from stages.mini.training.fitting import Budget, Plan, arguments_of, begin, budget_of, fit, forget, generator_of
from stages.mini.training.word_tokenizers import CLIP_LENGTH, clip_tokenizer
from stages.pipeline.outputs import atomic_directory
from stages.pipeline.progress import track

MINUTES = 15.0
LOCKED_MINUTES = 8.0
LOCKED_COUNT = 1500
BATCH_SIZE = 32
NEAR_MISSES = 2
LEARNING_RATE = 1.5e-3
TEXT_LAYERS = 2
AUXILIARY_WEIGHT = 0.3
DEFECT_SHARE = 0.25
LOWEST_TEMPERATURE = 0.01


class Training(nn.Module):
    """CLIP with linear heads that classify every attribute from the image embedding; only the CLIP is saved."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        width: Any = clip.visual_projection.out_features
        self.heads = attribute_heads(width)

    def forward(self, pooled: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
        """CLIP's contrastive loss of B images, plus a share of the heads' loss.

        Near misses are wrong answers for the images only: each image is to match its caption among all the texts, and each of
        the B captions its image among the B images.

        Args:
            pooled: the image tower's pooled output, (B, width).
            tokens: of the B captions, then of their near misses, (B x (1 + NEAR_MISSES), length).
            labels: (B, len(LABELS)).
        """
        features = self.clip.visual_projection(pooled)
        texts = unit_texts(self.clip, tokens)
        scale = self.clip.logit_scale.exp().clamp(max=1 / LOWEST_TEMPERATURE)
        logits = scale * F.normalize(features, dim=-1) @ texts.T
        own = torch.arange(len(features), device=features.device)
        contrast = F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(features)].T, own)
        return contrast / 2 + AUXILIARY_WEIGHT * heads_loss(self.heads, features, labels)


def build(tokenizer: CLIPTokenizer, blip: BlipForConditionalGeneration, text_layers: int) -> CLIPModel:
    """A CLIP with towers as wide as BLIP's image tower."""
    vision: Any = blip.config.vision_config
    shared = {name: getattr(vision, name) for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    shared |= {"hidden_act": "gelu", "projection_dim": vision.hidden_size}
    text_config = shared | {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": text_layers,
        "max_position_embeddings": CLIP_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision_config = shared | {
        "num_hidden_layers": vision.num_hidden_layers,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
    }
    return CLIPModel(CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=vision.hidden_size))


@torch.no_grad()
def begin_from(clip: CLIPModel, blip: BlipForConditionalGeneration, images: Tensor) -> None:
    """Give CLIP's image tower the weights of BLIP's.

    BLIP's has a bias in its patch embedding, which goes into the position embeddings, and one matrix for query, key and value.
    CLIP's has a layer norm after the embeddings that BLIP's lacks; its weight begins as the mean standard deviation of BLIP's
    embeddings of `images`, so that it changes them little.
    """
    source = {name: tensor.float().clone() for name, tensor in blip.vision_model.state_dict().items()}
    positions = source.pop("embeddings.position_embedding")[0]
    positions[1:] += source.pop("embeddings.patch_embedding.bias")
    positions[0] += source.pop("embeddings.class_embedding").flatten()
    tower = {"embeddings.position_embedding.weight": positions, "embeddings.class_embedding": torch.zeros(positions.shape[1])}
    for name, tensor in source.items():
        if ".self_attn.qkv." in name:
            for part, piece in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                tower[name.replace("qkv", part)] = piece
        else:
            tower[name.replace("self_attn.projection", "self_attn.out_proj")] = tensor
    missing, unexpected = clip.vision_model.load_state_dict(tower, strict=False)
    if unexpected or any("pre_layrnorm" not in name and "position_ids" not in name for name in missing):
        raise ValueError(f"the captioner's image tower does not fit the scorer's: missing {missing}, unexpected {unexpected}")
    embeddings = blip.vision_model.embeddings(images)
    clip.vision_model.pre_layrnorm.weight.fill_(float(embeddings[:, 1:].std(dim=2).mean()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and save."""
    parser = arguments_of("python -m stages.mini.training.train_scorer", __doc__, MINUTES)
    parser.add_argument("--captioner", type=Path, required=True, help="folder of the trained captioner")
    parser.add_argument("--out", type=Path, required=True, help="folder for the scorer")
    parser.add_argument(
        "--locked-minutes", type=float, default=LOCKED_MINUTES, help=f"first, with the image tower locked ({LOCKED_MINUTES:g})"
    )
    options = parser.parse_args(arguments)
    device = begin(options)
    tokenizer = clip_tokenizer()
    blip = BlipForConditionalGeneration.from_pretrained(options.captioner, dtype=torch.float32)
    clip = build(tokenizer, blip, 1 if options.tiny else TEXT_LAYERS)
    drawings = drawn_set(options.work, "train")
    begin_from(clip, blip, to_tensor(drawings.subset(range(0, len(drawings), max(1, len(drawings) // 256))).images))
    training = Training(clip).to(device).train()
    locked = _plan("scorer-locked", _locked_budget(options), options)
    _fit_locked(training, tokenizer, drawn_set(options.work, "train", LOCKED_COUNT), locked)
    if options.minutes != 0:
        whole = _plan("scorer", budget_of(options, MINUTES), options)
        fit(training, lambda step: _loss(training, tokenizer, drawings, step), whole)
    trained: Any = training.clip
    clip = trained.to("cpu").eval()
    _report(clip, tokenizer, options.work)
    with atomic_directory(options.out) as folder:
        clip.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        image_processor().save_pretrained(folder)
    for name in ("scorer-locked", "scorer"):
        forget(options.work / f"{name}.pt")


def _fit_locked(training: Training, tokenizer: CLIPTokenizer, drawings: Labelled, plan: Plan) -> None:
    """Train the text tower alone: locked-image tuning (Zhai et al. 2021, arXiv:2111.07991), with the captioner's image tower.

    The image tower does not change meanwhile, so its features of these drawings are computed once.
    """
    tower = training.clip.vision_model.requires_grad_(False)
    pooled = pooled_features(training.clip, drawings)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(drawings), (BATCH_SIZE,), generator=generator_of(5, step))
        return _contrast(training, tokenizer, pooled[rows], drawings.subset(rows.numpy()), step)

    fit(training, loss, plan)
    tower.requires_grad_(True)


@torch.no_grad()
def pooled_features(clip: CLIPModel, drawings: Labelled) -> Tensor:
    """The image tower's pooled output for each drawing, (N, width), on the device of `clip`."""
    starts = track(range(0, len(drawings), 64), "features of drawings")
    batches = [to_tensor(drawings.images[start : start + 64]).to(clip.device) for start in starts]
    return torch.cat([clip.vision_model(batch).pooler_output for batch in batches])


def image_processor() -> CLIPImageProcessorPil:
    """An image processor that makes 64 px images in [-1, 1]."""
    sides = {"height": SIZE, "width": SIZE}
    return CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=sides, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def captions_of(drawings: Labelled, rng: Random) -> list[str]:
    """A caption for each of N drawings, then a near miss for each, N at a time and NEAR_MISSES times over.

    A near miss is the same caption with the word of one attribute changed.
    """
    rounds: list[list[str]] = [[] for _ in range(1 + NEAR_MISSES)]
    for index in range(len(drawings)):
        style, attributes = drawings.attributes(index)
        name, kept = varied(style, attributes, rng)
        rounds[0].append(caption(name, kept))
        for near_misses in rounds[1:]:
            near_misses.append(caption(name, changed(style, kept, rng)))
    return [text for texts in rounds for text in texts]


def _loss(training: Training, tokenizer: CLIPTokenizer, drawings: Labelled, step: int) -> Tensor:
    torch.manual_seed(step)
    rows = torch.randint(len(drawings), (BATCH_SIZE,), generator=generator_of(4, step))
    batch = drawings.subset(rows.numpy())
    images = to_tensor(batch.images)
    spoilt = int(BATCH_SIZE * DEFECT_SHARE)
    images = torch.cat([with_defects(images[:spoilt]), moved(images[spoilt:])]).to(training.clip.device)
    return _contrast(training, tokenizer, training.clip.vision_model(images).pooler_output, batch, step)


def _contrast(training: Training, tokenizer: CLIPTokenizer, pooled: Tensor, batch: Labelled, step: int) -> Tensor:
    tokens = tokenizer(captions_of(batch, Random(step)), padding=True, return_tensors="pt").input_ids
    return training(pooled, tokens.to(pooled.device), torch.from_numpy(batch.labels).long().to(pooled.device))


def _locked_budget(options: argparse.Namespace) -> Budget:
    return Budget(options.steps, None if options.steps else options.locked_minutes)


def _plan(name: str, budget: Budget, options: argparse.Namespace) -> Plan:
    return Plan(
        label=f"training {name}",
        budget=budget,
        learning_rate=LEARNING_RATE,
        weight_decay=0.02,
        ema_decay=0.99,
        checkpoint=options.work / f"{name}.pt",
    )


def _report(clip: CLIPModel, tokenizer: CLIPTokenizer, work: Path) -> None:
    held_out = drawn_set(work, "held-out", 40)
    figures = {
        "retrieved": retrieved(clip, tokenizer, held_out),
        "ranked_above_changed": ranked_above_changed(clip, tokenizer, held_out),
    }
    (work / "scorer.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
