"""What a text-to-image LoRA trains on: images with captions of their own, and images of the class with their prompts."""

from pathlib import Path

import torch

from stages.encoding.encoded_files import EncodedCaptions, EncodedImages
from stages.encoding.prompts import embed_prompts, load_text_encoder
from stages.lora.batches import Examples, Stream
from stages.lora.class_stream import ClassImages, ClassPrompts, class_streams
from stages.lora.config import Text2imgConfig


def text2img_streams(
    images: EncodedImages,
    captions: EncodedCaptions,
    class_images: ClassImages,
    model: Path,
    config: Text2imgConfig,
    device: torch.device,
) -> list[Stream]:
    """The captioned images, and the class images where there are any; `caption_dropout` counts for both.

    The text encoder and the VAE are loaded for class images alone, and let go of afterwards.

    Args:
        images: of the subject.
        captions: of these images, embedded.
        class_images: of the class; none of them leaves prior preservation out.
        model: in diffusers layout.
        config: the run's settings.
        device: to encode on.
    """
    streams = [Stream("instance", pair_captions(images, captions), caption_dropout=config.caption_dropout)]
    if not class_images.paths:
        return streams
    tokenizer, text_encoder = load_text_encoder(model, device)
    embeds = embed_prompts(tokenizer, text_encoder, class_images.prompts, captions.clip_skip, batch_size=1)
    del text_encoder
    prompts = ClassPrompts(embeds, captions.empty_prompt_embeds, config.caption_dropout)
    return streams + class_streams(class_images, prompts, model, images.resolution, config.prior_loss_weight, device)


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
