"""Train the captioner, a small BLIP, to name what a drawing shows: "anime portrait, red long hair, light skin, …".

Reads <work>/drawings; the subject's twin tails are not among them. Writes the model and its processor to --out, weights in
float16, and <work>/captioner.json with its figures on held-out drawings. Run again to resume.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

from stages.mini.drawings.labelled import Labelled, drawn_set
from stages.mini.drawings.pixels import to_tensor
from stages.mini.drawings.portraits import SIZE, STYLES, caption
from stages.mini.evaluation.caption_accuracy import describe, named_right
from stages.mini.training.attribute_heads import attribute_heads, heads_loss
from stages.mini.training.fitting import Plan, arguments_of, begin, budget_of, fit, forget, generator_of
from stages.mini.training.word_tokenizers import BLIP_LENGTH, bert_tokenizer
from stages.pipeline.outputs import atomic_directory

MINUTES = 20.0
BATCH_SIZE = 24
LEARNING_RATE = 2e-3
WIDTH, LAYERS, TEXT_LAYERS = 96, 3, 2
TINY = (16, 1, 1)
AUXILIARY_WEIGHT = 0.3


class Training(nn.Module):
    """BLIP with linear heads that classify every attribute from the class token of the image tower; only the BLIP is saved.

    With the heads, the tower learns faster and knows the attributes when the scorer begins from it.
    """

    def __init__(self, blip: BlipForConditionalGeneration) -> None:
        super().__init__()
        self.blip = blip
        config: Any = blip.config
        self.pad_token_id: int = config.text_config.pad_token_id
        self.heads = attribute_heads(config.vision_config.hidden_size)

    def forward(self, images: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the captions' tokens, plus a share of the heads' loss.

        Args:
            images: (B, 3, 64, 64) in [-1, 1].
            tokens: of the captions, (B, length).
            labels: (B, len(LABELS)).
        """
        targets = tokens.masked_fill(tokens == self.pad_token_id, -100)
        output = self.blip(images, tokens, attention_mask=(targets != -100).long(), labels=targets)
        return output.loss + AUXILIARY_WEIGHT * heads_loss(self.heads, output.last_hidden_state[:, 0], labels)


def build(tokenizer: BertTokenizer, width: int, layers: int, text_layers: int) -> BlipForConditionalGeneration:
    """A BLIP of that width for 64 px images in patches of 8."""
    shared = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": max(1, width // 32)}
    text_config = shared | {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": text_layers,
        "max_position_embeddings": BLIP_LENGTH,
        "projection_dim": width,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision_config = shared | {
        "num_hidden_layers": layers,
        "image_size": SIZE,
        "patch_size": 8,
        "projection_dim": width,
        "initializer_range": 0.02,
    }
    config = BlipConfig(
        text_config=text_config, vision_config=vision_config, projection_dim=width, image_text_hidden_size=width
    )
    return BlipForConditionalGeneration(config)


def processor_of(tokenizer: BertTokenizer) -> BlipProcessor:
    """A processor with that tokenizer that makes 64 px images in [-1, 1]."""
    size = {"height": SIZE, "width": SIZE}
    return BlipProcessor(BlipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3), tokenizer)


def caption_tokens(tokenizer: BertTokenizer, drawings: Labelled) -> Tensor:
    """Tokens of each drawing's caption, (N, length); the first is [DEC], with which BLIP begins to generate."""
    captions = [caption(STYLES[style].caption, words) for style, words in map(drawings.attributes, range(len(drawings)))]
    tokens = tokenizer(captions, padding=True, return_tensors="pt").input_ids
    tokens[:, 0] = tokenizer.bos_token_id
    return tokens


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and save."""
    parser = arguments_of("python -m stages.mini.training.train_captioner", __doc__, MINUTES)
    parser.add_argument("--out", type=Path, required=True, help="folder for the captioner")
    options = parser.parse_args(arguments)
    device = begin(options)
    with atomic_directory(options.out) as folder:
        tokenizer = bert_tokenizer(folder)
        training = Training(build(tokenizer, *(TINY if options.tiny else (WIDTH, LAYERS, TEXT_LAYERS)))).to(device)
        drawings = drawn_set(options.work, "train")
        tokens = caption_tokens(tokenizer, drawings)
        plan = _plan(options)
        fit(training.train(), lambda step: _loss(training, drawings, tokens, step), plan)
        trained: Any = training.blip
        blip = trained.to("cpu").eval()
        _report(blip, tokenizer, options.work)
        blip.half().save_pretrained(folder)
        processor_of(tokenizer).save_pretrained(folder)
    forget(plan.checkpoint)


def _loss(training: Training, drawings: Labelled, tokens: Tensor, step: int) -> Tensor:
    torch.manual_seed(step)
    device = next(training.parameters()).device
    rows = torch.randint(len(drawings), (BATCH_SIZE,), generator=generator_of(3, step))
    batch = drawings.subset(rows.numpy())
    labels = torch.from_numpy(batch.labels).long()
    return training(to_tensor(batch.images).to(device), tokens[rows].to(device), labels.to(device))


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        label="training captioner",
        budget=budget_of(options, MINUTES),
        learning_rate=LEARNING_RATE,
        weight_decay=0.02,
        ema_decay=0.99,
        checkpoint=options.work / "captioner.pt",
    )


def _report(blip: BlipForConditionalGeneration, tokenizer: BertTokenizer, work: Path) -> None:
    held_out = drawn_set(work, "held-out", 40)
    captions = describe(blip, tokenizer, held_out.images)
    figures = named_right(captions, [held_out.attributes(index) for index in range(len(held_out))])
    (work / "captioner.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures), *captions[:3], sep="\n")


if __name__ == "__main__":
    main()
