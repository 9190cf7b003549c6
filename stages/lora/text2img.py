"""What a text-to-image LoRA trains on: images with captions of their own, and images of the class with their prompts."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from stages.encoding.encoded_files import EncodedCaptions, EncodedImages
from stages.encoding.prompts import embed_prompts, load_text_encoder
from stages.lora.batches import Examples, Stream, split_held_out
from stages.lora.class_stream import ClassImages, ClassPrompts, class_streams
from stages.lora.config import Text2imgConfig


def prompts_of(captions: EncodedCaptions, class_images: ClassImages, config: Text2imgConfig) -> list[str]:
    """The prompts in the order of their numbers: the empty one, the captions, and those of class images where they count."""
    of_class = class_images.prompts if config.prior_loss_weight else []
    return list(dict.fromkeys(["", *captions.captions, *of_class]))


def text2img_streams(
    images: EncodedImages,
    captions: EncodedCaptions,
    class_images: ClassImages,
    model: Path,
    config: Text2imgConfig,
    device: torch.device,
) -> tuple[list[Stream], Examples | None]:
    """The captioned images, and the class images where there are any; `caption_dropout` counts for both.

    The text encoder and the VAE are loaded for class images alone, and let go of afterwards. The held-out images come apart.

    Args:
        images: of the subject.
        captions: of these images, embedded.
        class_images: of the class; none of them leaves prior preservation out.
        model: in diffusers layout.
        config: the run's settings; where the text encoder is trained, the examples get the numbers of their prompts
            (`prompts_of`) in place of embeddings.
        device: to encode on.
    """
    numbers = {prompt: number for number, prompt in enumerate(prompts_of(captions, class_images, config))}
    if config.train_text_encoder:
        captions = _numbered(captions, numbers)
    kept, held_out = split_held_out(pair_captions(images, captions), images.held_out)
    streams = [Stream("instance", kept, caption_dropout=config.caption_dropout)]
    if not class_images.paths or not config.prior_loss_weight:
        return streams, held_out
    if config.train_text_encoder:
        embeds = torch.tensor([numbers[prompt] for prompt in class_images.prompts])
    else:
        tokenizer, text_encoder = load_text_encoder(model, device)
        embeds = embed_prompts(tokenizer, text_encoder, class_images.prompts, captions.clip_skip, batch_size=1)
        del text_encoder
    prompts = ClassPrompts(embeds, captions.empty_prompt_embeds, config.caption_dropout)
    streams += class_streams(class_images, prompts, model, images.resolution, config.prior_loss_weight, device)
    return streams, held_out


def _numbered(captions: EncodedCaptions, numbers: Mapping[str, int]) -> EncodedCaptions:
    """The captions with their numbers in place of embeddings."""
    of_captions = torch.tensor([numbers[caption] for caption in captions.captions])
    return replace(captions, prompt_embeds=of_captions, empty_prompt_embeds=torch.tensor(numbers[""]))


def pair_captions(images: EncodedImages, captions: EncodedCaptions) -> Examples:
    """Put every caption to its image, by file name; images without a caption are left out.

    Raises:
        ValueError: a caption is of an image that was not encoded.
    """
    index = {name: number for number, name in enumerate(images.file_names)}
    strangers = [name for name in captions.file_names if name not in index]
    if strangers:
        raise ValueError(f"{strangers[0]} has a caption and was not encoded as an image: run encode_images again")
    chosen = [index[name] for name in captions.file_names]
    return Examples(
        images.mean[chosen],
        images.std[chosen],
        images.scaling_factor,
        captions.prompt_embeds,
        captions.empty_prompt_embeds,
        tuple(captions.file_names),
        None if images.shapes is None else images.shapes[chosen],
    )
