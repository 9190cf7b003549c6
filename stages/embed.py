"""Embed the images of one variant, or of the dataset, with CLIP and DINOv2.

Reads a folder of cells (stage generate), or of images with manifest.csv (stage download). Writes one safetensors file: for each
image its embedding by each encoder, for each prompt that of CLIP, with the sha256 of every image and of the encoders. All that
is said of the images afterwards is computed from these, in seconds. A prompt in A1111's syntax is measured by its words.

A stage of its own because another measure must cost neither images nor embeddings, and because the report needs no torch once
these are written. An image that was embedded before, by the same encoders and the same code, is not embedded again.
"""

from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import ModelSource, RuntimeConfig, strict


@dataclass(frozen=True, config=strict)
class EmbedConfig:
    """What embeds.

    Attributes:
        clip: CLIP, a directory or a hub id with its commit: likeness to prompts, and to images by what they show.
        dino: DINOv2, likewise: likeness to images by how they look.
    """

    clip: ModelSource
    dino: ModelSource


def stage(config: EmbedConfig, runtime: RuntimeConfig, images: Path, out: Path) -> None:
    """Embed the images of the folder `images`.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        images: the directory of the images, as the stage generate or the stage download writes it.
        out: the .safetensors file to write; what the last run wrote there of the same images is taken over.
    """
    from stages.dataset.metadata import MANIFEST, read_manifest
    from stages.drawing.cells import read_cells
    from stages.drawing.image_files import read_image_recipe
    from stages.encoding.prompt_syntax import words_of

    recipe: dict[str, Any] = {}
    if (images / MANIFEST).is_file():
        names, prompts = [row.file_name for row in read_manifest(images)], []
    else:
        cells = read_cells(images)
        names, prompts = [cell.file_name for cell in cells], list(dict.fromkeys(cell.prompt for cell in cells))
        recipe = read_image_recipe(images / names[0])

    import torch

    from stages.checkpoints.files.tensors import sha256
    from stages.drawing.embeddings import embed_image, embed_texts, encoder_digest, load_clip, load_dino
    from stages.measures.embedded_files import Embedded, read_reusable, write_embedded
    from stages.pipeline.hub.repositories import fetch_model
    from stages.pipeline.progress import track
    from stages.pipeline.resume import keep_output, last_output, stage_digest
    from stages.pipeline.torch_runtime import device_name, prepare, weight_dtype

    device, dtype = prepare(runtime), weight_dtype(runtime)
    folders = {name: fetch_model(f"embed.{name}", getattr(config, name)) for name in ("clip", "dino")}
    clip, dino = load_clip(folders["clip"], device, dtype), load_dino(folders["dino"], device, dtype)
    encoders = {name: encoder_digest(folder) for name, folder in folders.items()}
    made_by = stage_digest("embed", {"runtime": runtime, "device": device_name(device), "encoders": encoders})
    known = read_reusable(last_output("embed", out, made_by), made_by)
    digests = [sha256(images / name) for name in names]
    rows: dict[str, list[torch.Tensor]] = {"clip": [], "dino": []}
    for name, digest in zip(track(names, "images embedded"), digests, strict=True):
        for encoder, model in (("clip", clip), ("dino", dino)):
            row = known.get((encoder, digest))
            rows[encoder].append(embed_image(model, images / name) if row is None else torch.from_numpy(row))
    width = rows["clip"][0].shape[0]
    said = [words_of(prompt) for prompt in prompts] if recipe.get("prompt_syntax") == "a1111" else prompts
    texts = embed_texts(clip, said) if prompts else torch.zeros(0, width)
    by_encoder = {name: torch.stack(of_encoder).numpy() for name, of_encoder in rows.items()}
    write_embedded(Embedded(by_encoder, texts.numpy(), names, digests, prompts, encoders, made_by), out)
    keep_output("embed", out, made_by)


if __name__ == "__main__":
    run(stage)
