"""Write what people take away: a single-file checkpoint, or a LoRA file, for A1111 and ComfyUI.

Reads a model in the diffusers layout, or the directory of a trained LoRA or of a word (textual inversion). Writes one
.safetensors file: the model in the LDM layout, with what it predicts, or the LoRA, LoHa or LoKr in kohya's keys with the alpha
that it was trained with; DoRA, words and what PEFT alone reads are copied as they are. With --lora FILE the model has that
adapter fused into its weights, --weight times as strong as it was trained. The recipe is in the file's metadata.

It is a stage of its own because no other stage reads these files: they are for tools outside of this pipeline.
"""

import shutil
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from stages.checkpoints.file_names import EMBEDDING_FILE, HISTORY_FILE, LORA_FILE, PREVIEWS
from stages.drawing.cells import read_cells
from stages.pipeline.command import run
from stages.pipeline.config import strict
from stages.pipeline.outputs import atomic_file


@dataclass(frozen=True, config=strict)
class ExportConfig:
    """How to write.

    Attributes:
        dtype: Of a merge's weights.
        lora_dtype: Of what was trained: a LoRA's weights or, where all weights were trained, those of the whole model.
    """

    dtype: Literal["float16", "float32"]
    lora_dtype: Literal["float16", "float32"]


def stage(
    config: ExportConfig, source: Path, out: Path, lora: Path | None = None, weight: float = 1.0, images: Path | None = None
) -> None:
    """Write the model, the LoRA or the word in the directory `source` to the file `out`, the model with `lora` fused into it.

    Args:
        config: the section of params.yaml named as the stage.
        source: the directory of a model in the diffusers layout, or of a training.
        out: the .safetensors file to write.
        lora: a LoRA to fuse into the model, its file or the directory of its training; left out for none.
        weight: the factor on what the fused LoRA adds.
        images: the directory of what the model drew, from which its file gets a thumbnail; that of a LoRA is its last preview.
    """
    if weight != 1 and lora is None:
        raise ValueError(f"--weight: given {weight:g} without --lora: it is the factor on a LoRA that is fused into a model")
    if lora and any((source / name).is_file() for name in (LORA_FILE, EMBEDDING_FILE)):
        raise ValueError(f"--lora: given {lora}, and {source} is no model: one is fused into a model")
    with atomic_file(out) as part:
        if (source / LORA_FILE).is_file():
            _write_lora(source, part, config.lora_dtype)
            if (source / EMBEDDING_FILE).is_file():
                print(f"{source}: its LoRA; its word, for a folder of embeddings, is {source / EMBEDDING_FILE}")
        elif (source / EMBEDDING_FILE).is_file():
            shutil.copyfile(source / EMBEDDING_FILE, part)
        else:
            trained = (source / HISTORY_FILE).is_file()
            drawn = None if images is None else images / read_cells(images)[0].file_name
            _write_model(source, part, config.lora_dtype if trained else config.dtype, lora, weight, drawn)


def _write_model(source: Path, part: Path, dtype: str, lora: Path | None, weight: float, thumbnail: Path | None) -> None:
    from stages.checkpoints.merging.fusing import fuse
    from stages.checkpoints.model import read_model
    from stages.checkpoints.single_file import unsaid, write_single_file

    model = read_model(source, None)
    if model.prediction_type == "v_prediction":
        print(f"{source}: predicts v, and the file says so (v_pred, modelspec.prediction_type)")
        print("A1111 does not look for it: put a v1-inference.yaml with `parameterization: v` beside the file, under its name")
        print("ComfyUI looks for it in SDXL's models alone: use its node ModelSamplingDiscrete")
    if lost := unsaid(model):
        print(f"{source}: a single file cannot say {', '.join(lost)}; programs that read it take the noise schedule of SD1")
    write_single_file(fuse(model, lora, weight) if lora else model, part, dtype, source.name, thumbnail)


def _write_lora(source: Path, part: Path, dtype: str) -> None:
    from stages.checkpoints import modelspec
    from stages.checkpoints.adapters import kohya_metadata
    from stages.checkpoints.adapters.kohya import write_kohya
    from stages.checkpoints.adapters.lora_files import other_adapters, read_lora

    lora = source / LORA_FILE
    if others := other_adapters(lora):
        kind = next(iter(others.values()))["peft_type"]
        print(f"{lora}: {kind}, which no other program reads: copied as it is, for PEFT")
        shutil.copyfile(lora, part)
        return
    read = read_lora(lora)
    if "DoRA" in read.kinds():
        print(
            f"{lora}: DoRA has no keys that other programs compute alike: copied as it is, for diffusers and PEFT; "
            "--lora fuses it into its model, for all"
        )
        shutil.copyfile(lora, part)
    else:
        told = read.settings.get(kohya_metadata.TRAINING, {})
        side = told.get("resolution")
        spec = modelspec.modelspec(
            source.name,
            kohya_metadata.embedding_width(read),
            "lora",
            _last_preview(source),
            resolution=side and f"{side}x{side}",
            prediction_type=told.get("prediction_type"),
        )
        metadata = {**spec, **kohya_metadata.kohya_metadata(read, source.name)}
        write_kohya(read, part, dtype, metadata, kohya_metadata.HASH | modelspec.HASH)


def _last_preview(source: Path) -> Path | None:
    """The last preview of a training's first prompt; None where there are none."""
    return max((source / PREVIEWS).glob("p0-step*.png"), default=None)


if __name__ == "__main__":
    run(stage)
