"""Draw every prompt with every seed, with one variant of the model.

Reads a checkpoint in diffusers layout and, where `--lora` is given, a LoRA for it; where `--embedding` is, a word that it was
taught (textual inversion), with the LoRA that was trained with it. Writes one PNG a prompt and seed,
`p<prompt index>-s<seed>.png`, with its settings and the digests of the weights in text chunks, cells.csv (file_name, prompts:
subject or other, prompt, seed), and drawn.csv (file_name, sha256, and a digest of all that the picture depends on).

A stage of its own, run once for every variant (both originals, each merge, each LoRA), because drawing is the slow part of
the comparison and another variant, a score or the look of the report must not repeat it. All variants start from the
same noise: it depends on the seed alone. What the last run drew of the same prompts and seeds, by the same weights, settings
and code, is taken over: a new prompt draws its own pictures only.
"""

import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from stages.checkpoints.file_names import LORA_FILE, lora_file
from stages.drawing.config import SamplingConfig, sampling_of
from stages.pipeline.command import run
from stages.pipeline.config import RuntimeConfig, Seed, Text, refuse_twice, strict
from stages.pipeline.outputs import atomic_directory


@dataclass(frozen=True, config=strict)
class GenerateConfig(SamplingConfig):
    """What is drawn, and how.

    Attributes:
        subject_prompts: those that ask for what the LoRAs learnt.
        other_prompts: those that do not: they show what the LoRAs changed besides.
        seeds: one image a prompt for each.
    """

    subject_prompts: Annotated[tuple[Text, ...], Field(min_length=1)]
    other_prompts: tuple[Text, ...]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        """Refuse what would be drawn twice, and what is not read in prompts."""
        SamplingConfig.__post_init__(self)
        self.check_prompts(subject_prompts=self.subject_prompts, other_prompts=self.other_prompts)
        refuse_twice(subject_prompts=self.subject_prompts, other_prompts=self.other_prompts, seeds=self.seeds)
        both = next((prompt for prompt in self.subject_prompts if prompt in self.other_prompts), None)
        if both is not None:
            raise ValueError(f"other_prompts: {both!r} is one of subject_prompts, too; a prompt asks for the subject or not")


def stage(
    config: GenerateConfig,
    runtime: RuntimeConfig,
    model: Path,
    out: Path,
    lora: Path | None = None,
    lora_scale: float = 1.0,
    embedding: Path | None = None,
) -> None:
    """Draw the images of the variant that `model`, `lora` and `embedding` make.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        model: the directory of the model that draws, in the diffusers layout.
        out: the directory to write the images to.
        lora: a LoRA for the model, its file or the directory of its training; left out for none.
        lora_scale: the factor on what the LoRA adds; 0 is the model without it.
        embedding: a word that was taught, its file or the directory of its training; left out for none.
    """
    from stages.drawing import cells, loaded_models, sampling
    from stages.drawing.image_files import write_image
    from stages.drawing.taken_over import read_drawn, write_drawn
    from stages.encoding.words import learned_file
    from stages.pipeline.progress import track
    from stages.pipeline.recorded import make_recorder
    from stages.pipeline.resume import keep_output, last_output, stage_digest
    from stages.pipeline.torch_runtime import device_name, prepare, weight_dtype

    drawn = cells.cells_of(config.subject_prompts, config.other_prompts, config.seeds)
    device = prepare(runtime)
    settings = {**sampling_of(config), "runtime": runtime, "device": device_name(device), "lora_scale": lora_scale}
    if lora is None and embedding is not None and (embedding / LORA_FILE).is_file():
        lora = embedding
    settings |= {"model": model.name, "lora": lora and loaded_models.lora_name(lora)}
    taught = [] if embedding is None else [learned_file(embedding)]
    made_by = stage_digest("generate", settings, [model, *([] if lora is None else [lora_file(lora)]), *taught])
    known = read_drawn(last_output("generate", out, made_by), made_by)
    taken = {prompt: known.files(prompt, config.seeds) for prompt in (*config.subject_prompts, *config.other_prompts)}
    new = [prompt for prompt, files in taken.items() if not files]
    recipe, images = {}, iter(())
    if new:
        recorder = make_recorder(runtime.cuda_graphs, device)
        models = loaded_models.load_models(model, device, weight_dtype(runtime), recorder)
        if lora is not None:
            loaded_models.load_lora(models, lora, lora_scale)
        recipe = loaded_models.describe(models, config, runtime)
        if embedding is not None:
            models = loaded_models.load_word(models, embedding)
            recipe |= loaded_models.describe_word(embedding)
        if lora is not None:
            recipe |= loaded_models.describe_lora(lora, lora_scale)
        images = track(sampling.draw(models, new, config.seeds, config), "images", total=len(new) * len(config.seeds))
    with atomic_directory(out) as folder:
        for cell in drawn:
            if files := taken[cell.prompt]:
                shutil.copyfile(files[cell.seed], folder / cell.file_name)
            else:
                batch = sampling.batch_of(config.seeds, cell.seed, config.batch_size)
                own = {"prompt": cell.prompt, "seed": cell.seed, "batch_seeds": batch}
                write_image(next(images), folder / cell.file_name, recipe | own)
        next(images, None)  # the end of them, where it is said how long they took
        cells.write_cells(folder, drawn)
        write_drawn(folder, drawn, made_by)
    keep_output("generate", out, made_by)


if __name__ == "__main__":
    run(stage)
