"""Draw every prompt with every seed, with one variant of the model.

Reads a checkpoint in diffusers layout and, where `--lora` is given, a LoRA for it. Writes one PNG a prompt and seed,
`p<prompt index>-s<seed>.png`, with its settings and the digests of the weights in text chunks, and cells.csv
(file_name, prompt, seed).

A stage of its own, run once for every variant (both originals, each merge, each LoRA), because drawing is the slow part of
the comparison and another variant, a score or the look of the report must not repeat it. All variants start from the
same noise: it depends on the seed alone.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from stages.checkpoints.file_names import lora_file
from stages.drawing.config import SamplingConfig
from stages.pipeline.command import run
from stages.pipeline.config import RuntimeConfig, Seed, Text, refuse_twice, strict
from stages.pipeline.outputs import atomic_directory


@dataclass(frozen=True, config=strict)
class GenerateConfig(SamplingConfig):
    """What is drawn, and how.

    Attributes:
        prompts: the rows of the grid.
        seeds: one image a prompt for each.
    """

    prompts: Annotated[tuple[Text, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        """Refuse what would be drawn twice."""
        refuse_twice(prompts=self.prompts, seeds=self.seeds)


def stage(
    config: GenerateConfig, runtime: RuntimeConfig, model: Path, out: Path, lora: Path | None = None, lora_scale: float = 1.0
) -> None:
    """Draw the images of the variant that `model` and `lora` make.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        model: the directory of the model that draws, in the diffusers layout.
        out: the directory to write the images to.
        lora: a LoRA for the model, its file or the directory of its training; left out for none.
        lora_scale: the factor on what the LoRA adds; 0 is the model without it.
    """
    from stages.checkpoints.files.tensors import sha256
    from stages.drawing import cells, sampling
    from stages.pipeline.png_text import write_png
    from stages.pipeline.progress import track
    from stages.pipeline.torch_runtime import prepare, weight_dtype

    drawn = cells.cells_of(config.prompts, config.seeds)
    models = sampling.load_models(model, prepare(runtime), weight_dtype(runtime))
    if lora is not None:
        sampling.load_lora(models, lora, lora_scale)
    text = sampling.describe(models, config)
    if lora is not None:
        text |= {"lora_scale": f"{lora_scale:g}", "lora_sha256": sha256(lora_file(lora))}
    images = sampling.draw(models, config.prompts, config.seeds, config)
    with atomic_directory(out) as folder:
        for cell, image in zip(drawn, track(images, "images", total=len(drawn)), strict=True):
            write_png(image, folder / cell.file_name, {**text, "prompt": cell.prompt, "seed": str(cell.seed)})
        cells.write_cells(folder, drawn)


if __name__ == "__main__":
    run(stage)
