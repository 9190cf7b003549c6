"""The PNG of a generated image, and what it says of itself: how to draw it again. Imports no torch.

Three text chunks: A1111's `parameters`, which its web UI, Civitai and most readers of prompts take; the recipe, as JSON and
without loss, under this program's name; and XMP, which says that a model made the picture (IPTC's DigitalSourceType). The key
`prompt` stays free: ComfyUI expects its own JSON there.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stages.drawing.noise_schedulers import NOISE_SCHEDULERS
from stages.pipeline.variants import in_full
from stages.pipeline.wording import PROGRAM

PARAMETERS, XMP = "parameters", "XML:com.adobe.xmp"
GENERATED, COMPOSED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
"""IPTC's digital source types: made by a trained model, and put together from such images and others."""

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/{}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
DIGITS, LORA_DIGITS = 10, 12
"""How much of a sha256 A1111 writes, of a checkpoint and of a LoRA."""


def write_image(image: Image.Image, path: Path, recipe: Mapping[str, Any]) -> None:
    """Write an image with its recipe; the same picture and recipe always give the same bytes.

    Args:
        image: what was drawn.
        path: of the PNG.
        recipe: all that the picture depends on, see `parameters_text` for what is understood; any value that JSON has.
    """
    chunks = xmp_chunk(GENERATED)
    chunks.add_text(PARAMETERS, _storable(parameters_text(recipe)))
    chunks.add_text(PROGRAM, json.dumps(recipe, sort_keys=True))
    image.save(path, "PNG", pnginfo=chunks, optimize=False, compress_level=6)


def read_image_recipe(path: Path) -> dict[str, Any]:
    """The recipe that `write_image` wrote into an image; empty where there is none."""
    with Image.open(path) as image:
        image.load()  # text may stand behind the pixels
        text = getattr(image, "text", {}).get(PROGRAM, "{}")
    try:
        recipe = json.loads(text)
    except ValueError:
        return {}
    return recipe if isinstance(recipe, dict) else {}


def parameters_text(recipe: Mapping[str, Any]) -> str:
    """What A1111 would write of an image: the prompt, the negative prompt, and a line of settings.

    A LoRA stands in the prompt as `<lora:name:scale>`, as A1111 needs it to draw the same. Hashes are the first digits of the
    sha256 of the files that drew: those of the UNet, and of the LoRA as it was trained.

    Args:
        recipe: `prompt`, `negative_prompt`, `num_inference_steps`, `noise_scheduler`, `guidance_scale`, `seed`, `resolution`,
            `clip_skip`, `model`, `unet_sha256`, `lora`, `lora_scale`, `lora_sha256`; those that are missing are left out.
    """
    lora = f" <lora:{recipe['lora']}:{in_full(recipe['lora_scale'])}>" if "lora" in recipe else ""
    negative = recipe.get("negative_prompt", "")
    lines = [f"{recipe.get('prompt', '')}{lora}", *([f"Negative prompt: {negative}"] if negative else [])]
    settings = ", ".join(f"{name}: {value}" for name, value in _settings(recipe).items() if value not in (None, ""))
    return "\n".join([*lines, settings])


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    sampler = NOISE_SCHEDULERS.get(recipe.get("noise_scheduler", ""))
    side, guidance_scale, clip_skip = (recipe.get(name) for name in ("resolution", "guidance_scale", "clip_skip"))
    lora = f'"{recipe["lora"]}: {recipe.get("lora_sha256", "")[:LORA_DIGITS]}"' if "lora" in recipe else None
    return {
        "Steps": recipe.get("num_inference_steps"),
        "Sampler": sampler and sampler.a1111,
        "Schedule type": sampler and sampler.spacing and sampler.spacing.capitalize(),
        "CFG scale": None if guidance_scale is None else in_full(guidance_scale),
        "Seed": recipe.get("seed"),
        "Size": side and f"{side}x{side}",
        "Model hash": recipe.get("unet_sha256", "")[:DIGITS],
        "Model": recipe.get("model"),
        "Clip skip": clip_skip + 1 if clip_skip else None,
        "RNG": "CPU",
        "Lora hashes": lora,
        "Version": f"{PROGRAM} {version(PROGRAM)}",
    }


def xmp_chunk(source_type: str) -> PngInfo:
    """The text chunks of a PNG that say what kind of picture it is, `GENERATED` or `COMPOSED`; more may be added."""
    chunks = PngInfo()
    chunks.add_itxt(XMP, _XMP.format(source_type))
    return chunks


def _storable(text: str) -> str:
    """A text as a PNG can hold it: without the character that ends a text, and without halves of characters."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
