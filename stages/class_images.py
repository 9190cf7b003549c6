"""Draw images of the class that the subject belongs to, with the model that is going to be tuned.

Training learns from them beside the images of the subject, so that the class does not become the subject: DreamBooth's prior
preservation, and what kohya's trainers call regularisation images.

Reads a merge in diffusers layout. Writes 0001.png, 0002.png …, each with its prompt and its seed as PNG text; with
`num_class_images` 0, prior preservation is off, and the folder holds a note that says so.

It is a stage of its own because the images belong to the model: with those of another base, the LoRA would learn that base.
All ranks on a merge share them.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from stages.drawing.config import SamplingConfig
from stages.pipeline.command import run
from stages.pipeline.config import RuntimeConfig, Seed, Text, refuse_twice, strict
from stages.pipeline.outputs import atomic_directory, write_nothing


@dataclass(frozen=True, config=strict)
class ClassImagesConfig(SamplingConfig):
    """How the class images are drawn.

    Attributes:
        num_class_images: how many; 0 turns prior preservation off.
        class_prompts: name the class that the subject belongs to; the images take them in turn.
        seed: of the first image; each further image has the next one.
    """

    num_class_images: Annotated[int, Field(ge=0)]
    class_prompts: Annotated[tuple[Text, ...], Field(min_length=1)]
    seed: Seed

    def __post_init__(self) -> None:
        """Refuse a prompt that stands twice, and what is not read in prompts."""
        SamplingConfig.__post_init__(self)
        self.check_prompts(class_prompts=self.class_prompts)
        refuse_twice(class_prompts=self.class_prompts)


def stage(config: ClassImagesConfig, runtime: RuntimeConfig, model: Path, out: Path) -> None:
    """Draw the class images with `model`, into the directory `out`.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        model: the directory of the model that draws them, in the diffusers layout.
        out: the directory to write the images to.
    """
    with atomic_directory(out) as folder:
        if config.num_class_images:
            _draw(config, runtime, model, folder)
        else:
            write_nothing(folder, "Prior preservation is off: class_images.num_class_images is 0.")


def _draw(config: ClassImagesConfig, runtime: RuntimeConfig, model: Path, folder: Path) -> None:
    from stages.drawing.image_files import write_image
    from stages.drawing.loaded_models import describe, load_models
    from stages.drawing.sampling import batch_of, draw
    from stages.pipeline.progress import track
    from stages.pipeline.recorded import make_recorder
    from stages.pipeline.torch_runtime import prepare, weight_dtype

    device = prepare(runtime)
    models = load_models(model, device, weight_dtype(runtime), make_recorder(runtime.cuda_graphs, device))
    recipe = describe(models, config, runtime)
    count, prompts = config.num_class_images, config.class_prompts[: config.num_class_images]
    of_prompt = {prompt: range(first, count, len(prompts)) for first, prompt in enumerate(prompts)}
    drawn = (
        (number, prompt, image)
        for prompt, numbers in of_prompt.items()
        for number, image in zip(numbers, draw(models, [prompt], [config.seed + each for each in numbers], config), strict=True)
    )
    digits = max(4, len(str(count)))
    for number, prompt, image in track(drawn, "class images", total=count):
        seed, seeds = config.seed + number, [config.seed + each for each in of_prompt[prompt]]
        own = {"prompt": prompt, "seed": seed, "batch_seeds": batch_of(seeds, seed, config.batch_size)}
        write_image(image, folder / f"{number + 1:0{digits}d}.png", recipe | own)


if __name__ == "__main__":
    run(stage)
