"""What a text-to-image LoRA trains on: images with captions of their own."""

from stages.encoding.encoded_files import EncodedCaptions, EncodedImages
from stages.lora.batches import Examples, Stream


def text2img_streams(images: EncodedImages, captions: EncodedCaptions, caption_dropout: float) -> list[Stream]:
    """The one stream of captioned images; `caption_dropout` of its samples get the empty caption."""
    return [Stream("instance", pair_captions(images, captions), caption_dropout=caption_dropout)]


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
