"""What a text-to-image LoRA trains on: images with captions of their own, and images of the class with their prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stages.encoding.choices import chosen
from stages.encoding.encoded_files import EncodedCaptions, EncodedImages
from stages.encoding.prompts import embed_prompts, load_text_encoder
from stages.lora.batches import Stream
from stages.lora.caption_variants import Variants, variants_of, varies
from stages.lora.class_stream import ClassImages, ClassPrompts, class_streams
from stages.lora.config import Text2imgConfig
from stages.lora.examples import Examples, examples_of, split_held_out
from stages.pipeline.wording import counted, sized

VARIANTS_TOGETHER = 32
"""Captions that vary and are embedded together; no setting, because the last bits of the result depend on it."""
MOST_BYTES = 2**30
"""Up to this size the embeddings of captions that vary are kept in memory."""


@dataclass(frozen=True)
class Captioned:
    """What a run trains on.

    Attributes:
        streams: the captioned images, and the class images where there are any; `caption_dropout` counts for both.
        held_out: images like those of the first stream that are never trained on; their captions stay as they are.
        prompts: where the examples hold numbers in place of embeddings, what they stand for, in their order; else nothing.
    """

    streams: list[Stream]
    held_out: Examples | None
    prompts: list[str]


def text2img_streams(
    images: EncodedImages,
    captions: EncodedCaptions,
    class_images: ClassImages,
    model: Path,
    config: Text2imgConfig,
    seed: int,
    device: torch.device,
) -> Captioned:
    """Put images and captions together.

    The text encoder is loaded where class images, or captions that vary, are to be embedded, and the VAE for class images; both
    are let go of afterwards. Texts that would take more than `MOST_BYTES` are embedded while training.

    Args:
        images: of the subject.
        captions: of these images, embedded.
        class_images: of the class; none of them leaves prior preservation out.
        model: in diffusers layout.
        config: the run's settings.
        seed: of the run, on which captions that vary depend.
        device: to encode on.
    """
    of_class = class_images.prompts if config.prior_loss_weight else []
    kept, held_out = split_held_out(pair_captions(images, captions, config.unmasked_weight), images.held_out)
    texts_of = dict(zip(captions.file_names, captions.captions, strict=True))
    variants = None
    if varies(config, captions.captions):
        variants = variants_of({name: texts_of[name] for name in kept.file_names}, config, seed, kept.repeats)
    varying = variants.texts if variants else []
    prompts: list[str] = []
    if _embedded_while_training(config, variants, captions):
        fixed = {name: chosen(text) for name, text in texts_of.items()}
        prompts = list(dict.fromkeys(["", *fixed.values(), *of_class, *varying]))
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        kept = _with_numbers(kept, fixed, numbers)
        held_out = None if held_out is None else _with_numbers(held_out, fixed, numbers)
        embeds, class_embeds = torch.arange(len(prompts)), torch.tensor([numbers[prompt] for prompt in of_class])
        places = torch.tensor([numbers[text] for text in varying])
    else:
        embeds = _embed(model, varying, captions.clip_skip, device, VARIANTS_TOGETHER)
        class_embeds = _embed(model, of_class if class_images.paths else [], captions.clip_skip, device, 1)
        places = torch.arange(len(varying))
    empty = kept.empty_prompt_embeds
    if variants is not None:
        kept = replace(kept, prompt_embeds=embeds, choices=places[variants.numbers])
    streams = [Stream("instance", kept, caption_dropout=config.caption_dropout)]
    if of_class:
        class_prompts = ClassPrompts(class_embeds, empty, config.caption_dropout)
        streams += class_streams(class_images, class_prompts, model, images.resolution, config.prior_loss_weight, device)
    return Captioned(streams, held_out, prompts)


def _embedded_while_training(config: Text2imgConfig, variants: Variants | None, captions: EncodedCaptions) -> bool:
    """Whether prompts are embedded in each step: the text encoder is trained, or there are too many of them."""
    if variants is not None:
        size = len(variants.texts) * captions.empty_prompt_embeds.numel() * captions.empty_prompt_embeds.element_size()
        beforehand = size <= MOST_BYTES and not config.train_text_encoder
        how = f"embedded beforehand ({sized(size)})" if beforehand else "embedded while training"
        print(f"captions vary: {counted(len(variants.texts), 'text')}, {how}", flush=True)
        return not beforehand
    return config.train_text_encoder


def _embed(model: Path, texts: Sequence[str], clip_skip: int, device: torch.device, batch_size: int) -> Tensor:
    """(N, L, D), of no texts (0,)."""
    if not texts:
        return torch.zeros(0)
    tokenizer, text_encoder = load_text_encoder(model, device)
    return embed_prompts(tokenizer, text_encoder, texts, clip_skip, batch_size)


def _with_numbers(examples: Examples, captions: Mapping[str, str], numbers: Mapping[str, int]) -> Examples:
    """Examples with the numbers of their captions in place of embeddings."""
    of_images = torch.tensor([numbers[captions[name]] for name in examples.file_names])
    return replace(examples, prompt_embeds=of_images, empty_prompt_embeds=torch.tensor(numbers[""]))


def pair_captions(images: EncodedImages, captions: EncodedCaptions, unmasked_weight: float) -> Examples:
    """Put every caption to its image, by file name; images without a caption are left out.

    Raises:
        ValueError: a caption is of an image that was not encoded.
    """
    index = {name: number for number, name in enumerate(images.file_names)}
    strangers = [name for name in captions.file_names if name not in index]
    if strangers:
        raise ValueError(f"{strangers[0]} has a caption and was not encoded as an image: run encode_images again")
    described = images.chosen([index[name] for name in captions.file_names])
    return examples_of(described, captions.prompt_embeds, captions.empty_prompt_embeds, unmasked_weight)
