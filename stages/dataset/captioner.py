"""BLIP, the captioning model (Li et al. 2022, arXiv:2201.12086): loading it, and asking it about images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor
from transformers.utils.logging import disable_progress_bar

from stages.dataset.config import CaptioningConfig


def load_blip(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """Load BLIP and its processor.

    The tokenizer and the image processor are named by class: the automatic choice of the latter asks for torchvision.

    Args:
        folder: in the transformers layout.
        device: where it computes.
        dtype: of weights and activations.

    Raises:
        OSError: files are missing, or are not those of a BLIP captioner.
    """
    name = f"captioner {folder}"
    if not (folder / "config.json").is_file():  # transformers would take BLIP's original config
        raise OSError(f"{name} is not a model in the transformers layout: config.json is missing")
    disable_progress_bar()  # loading is a flash
    local: dict[str, Any] = {"local_files_only": True}
    try:
        config = BlipConfig.from_pretrained(folder, **local)
        tokenizer = BertTokenizer.from_pretrained(folder, **local)
        image_processor = BlipImageProcessorPil.from_pretrained(folder, **local)
        loaded: Any = BlipForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, **local
        )
    except (OSError, ValueError, RuntimeError) as error:  # paragraphs
        raise OSError(f"{name}: {' '.join(str(error).split())}") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise OSError(f"{name} is not a BLIP captioning model: it lacks weights ({len(missing)}), first {missing[0]}")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what BertTokenizer makes of a directory without its files
        raise OSError(f"{name} has no vocabulary: tokenizer.json or vocab.txt is missing")
    return model.to(device).eval(), BlipProcessor(image_processor, tokenizer)


@torch.inference_mode()
def generate_captions(
    model: BlipForConditionalGeneration, processor: BlipProcessor, files: Sequence[Path], config: CaptioningConfig
) -> Iterator[str]:
    """Describe images, in their order, as the model words it; nothing is drawn at random.

    Args:
        model: from `load_blip`.
        processor: from `load_blip`.
        files: images.
        config: how to ask it; with a prompt, this is conditional captioning.

    Yields:
        A caption for each file.
    """
    limits: dict[str, Any] = {"num_beams": config.num_beams, "max_new_tokens": config.max_new_tokens}
    for start in range(0, len(files), config.batch_size):
        images = [Image.open(file).convert("RGB") for file in files[start : start + config.batch_size]]
        text = [config.prompt] * len(images) if config.prompt else None
        inputs = processor(images=images, text=text, return_tensors="pt")  # pyright: ignore[reportCallIssue]
        inputs = inputs.to(model.device, model.dtype)
        tokens = model.generate(**inputs, **limits, do_sample=False)
        words = tokens[:, 1:]  # the first is [DEC], which is no word and not in every vocabulary
        yield from processor.batch_decode(words, skip_special_tokens=True)
