"""CLIP scores of images (Radford et al. 2021, arXiv:2103.00020): likeness to their prompt and to the training images.

They are CLIP-T and CLIP-I, the prompt fidelity and the subject fidelity of DreamBooth (Ruiz et al. 2023, arXiv:2208.12242,
section 4.1). Both are mean cosines of embeddings, in [-1, 1]; higher is better. Neither is a judge of beauty, and the second
one rewards copies of the training images as well as likeness.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from stages.drawing.cells import Cell


@dataclass(frozen=True)
class Scorer:
    """CLIP, on one device and in one dtype."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    image_processor: CLIPImageProcessorPil


def load_scorer(folder: Path, device: torch.device, dtype: torch.dtype) -> Scorer:
    """Load CLIP and what prepares its inputs.

    Args:
        folder: in the transformers layout.
        device: where it computes.
        dtype: of weights and activations.

    Raises:
        OSError: files are missing, or are not those of a CLIP.
    """
    disable_progress_bar()  # loading is a flash
    local: dict[str, Any] = {"local_files_only": True}
    try:
        # The image processor is named by class: the automatic choice asks for torchvision.
        image_processor = CLIPImageProcessorPil.from_pretrained(folder, **local)
        tokenizer = CLIPTokenizer.from_pretrained(folder, **local)
        loaded: Any = CLIPModel.from_pretrained(folder, dtype=dtype, output_loading_info=True, **local)
    except (OSError, ValueError, RuntimeError) as error:  # paragraphs
        raise OSError(f"cannot load the scorer {folder}: {' '.join(str(error).split())}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise OSError(f"the scorer {folder} is not a CLIP: it lacks weights ({len(missing)}), first {missing[0]}")
    return Scorer(model.to(device).eval(), tokenizer, image_processor)


@torch.inference_mode()
def embed_images(scorer: Scorer, files: Sequence[Path], batch_size: int) -> Tensor:
    """Embed image files.

    Returns:
        embeddings: (N, D) float32 on the CPU, each of length 1.
    """
    batches = []
    for start in range(0, len(files), batch_size):
        images = [Image.open(file).convert("RGB") for file in files[start : start + batch_size]]
        pixel_values = scorer.image_processor(images, return_tensors="pt").pixel_values
        pixel_values = pixel_values.to(scorer.model.device, scorer.model.dtype)
        features: Any = scorer.model.get_image_features(pixel_values)
        batches.append(_unit(features.pooler_output))
    return torch.cat(batches)


@torch.inference_mode()
def embed_texts(scorer: Scorer, texts: Sequence[str]) -> Tensor:
    """Embed texts, one at a time; what the text encoder cannot hold (beyond 77 tokens) is cut off.

    Returns:
        embeddings: (N, D) float32 on the CPU, each of length 1.
    """
    embeddings = []
    for text in texts:
        inputs = scorer.tokenizer(text, truncation=True, max_length=scorer.tokenizer.model_max_length, return_tensors="pt")
        inputs = inputs.to(scorer.model.device)
        features: Any = scorer.model.get_text_features(inputs.input_ids, attention_mask=inputs.attention_mask)
        embeddings.append(_unit(features.pooler_output))
    return torch.cat(embeddings)


def score_cells(
    scorer: Scorer, folder: Path, cells: Sequence[Cell], references: Sequence[Path], batch_size: int
) -> dict[Cell, dict[str, float]]:
    """Score the pictures of `cells` in `folder` by every metric."""
    images = embed_images(scorer, [folder / cell.file_name for cell in cells], batch_size)
    prompts = list(dict.fromkeys(cell.prompt for cell in cells))
    prompt_of_image = [prompts.index(cell.prompt) for cell in cells]
    columns = {
        "prompt_similarity": prompt_similarity(images, embed_texts(scorer, prompts)[prompt_of_image]),
        "reference_similarity": reference_similarity(images, embed_images(scorer, references, batch_size)),
    }
    return {cell: {name: column[index].item() for name, column in columns.items()} for index, cell in enumerate(cells)}


def prompt_similarity(images: Tensor, prompts: Tensor) -> Tensor:
    """CLIP-T: the cosine of each image with its own prompt.

    Args:
        images: (N, D), each of length 1.
        prompts: (N, D), each of length 1.

    Returns:
        similarity: (N,) in [-1, 1].
    """
    return (images * prompts).sum(dim=1)


def reference_similarity(images: Tensor, references: Tensor) -> Tensor:
    """CLIP-I: the mean cosine of each image with all reference images.

    Args:
        images: (N, D), each of length 1.
        references: (M, D), each of length 1.

    Returns:
        similarity: (N,) in [-1, 1].
    """
    return images @ references.mean(dim=0)


def _unit(embeddings: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu()
