"""Say how an image was drawn, or draw it again from what its file says.

Its prompt, its seed, the seeds of its batch and all settings are in the file. The weights are not: they are named with
--model, --lora and --embedding, and have to be those that drew it, by their sha256.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.checkpoints.file_names import WEIGHTS
from stages.drawing.config import SamplingConfig
from stages.drawing.image_files import read_image_recipe, write_image
from stages.pipeline.command import errors_in_one_line
from stages.pipeline.config import validate
from stages.pipeline.outputs import atomic_file

SETTINGS = tuple(SamplingConfig.__dataclass_fields__)
WEIGHTS_DIGESTS = (*(f"{part}_sha256" for part in WEIGHTS), "lora_sha256", "embedding_sha256")
NOT_NEW = tuple(name for name in SETTINGS if name != "prompt_syntax")
NEEDED = (
    "prompt",
    "seed",
    "batch_seeds",
    "unet_sha256",
    "device",
    "threads",
    "dtype",
    *(name for name in SETTINGS if name != "prompt_syntax"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print an image's recipe, or follow it."""
    parser = argparse.ArgumentParser(prog="python -m stages.drawing", description=__doc__)
    parser.add_argument("image", type=Path, help="a PNG that this pipeline drew")
    parser.add_argument("--again", type=Path, metavar="OUT", help="draw the image again, to this file")
    parser.add_argument("--model", type=Path, help="for --again: the model, in the diffusers layout")
    parser.add_argument("--lora", type=Path, help="for --again: the LoRA, if one drew it: its file, or its training's folder")
    parser.add_argument("--embedding", type=Path, help="for --again: the word that was taught, likewise, if it drew it")
    options = parser.parse_args(argv)
    if (options.again is None) != (options.model is None):
        parser.error("--again and --model go together: the file to write, and the model that draws")
    with errors_in_one_line("drawing"):
        recipe = read_image_recipe(options.image)
        if missing := [name for name in NEEDED if name not in recipe]:
            raise ValueError(f"{options.image}: does not say its {', '.join(missing)}: the stage generate did not draw it")
        if options.again is None:
            print(json.dumps(recipe, indent=2, sort_keys=True, ensure_ascii=False))
            return
        draw_again(options.image, recipe, options.again, options.model, options.lora, options.embedding)
        print(f"{options.again}: {_compared(options.image, options.again)}")


def draw_again(
    image: Path, recipe: Mapping[str, Any], out: Path, model: Path, lora: Path | None, embedding: Path | None
) -> None:
    """Draw an image again, with all of its batch, because the last bits depend on it.

    Raises:
        ValueError: the weights are not those that drew it, or the recipe needs another device.
    """
    from stages.drawing import loaded_models, sampling
    from stages.pipeline.recorded import make_recorder
    from stages.pipeline.torch_runtime import prepare, runtime_of, weight_dtype

    runtime = runtime_of(recipe)
    settings = {name: recipe[name] for name in SETTINGS if name in recipe}
    config = validate("recipe", SamplingConfig, {"prompt_syntax": "plain"} | settings)  # older images do not say it
    device = prepare(runtime)
    recorder = make_recorder(runtime.cuda_graphs, device)
    models = loaded_models.load_models(model, device, weight_dtype(runtime), recorder)
    found = loaded_models.describe(models, config, runtime)
    if lora is not None:
        found |= loaded_models.describe_lora(lora, recipe.get("lora_scale", 1.0))
    if embedding is not None:
        found |= loaded_models.describe_word(embedding)
    _check_weights(image, recipe, found, {"lora": lora, "embedding": embedding, "model": model})
    if embedding is not None:
        models = loaded_models.load_word(models, embedding)
    if lora is not None:
        loaded_models.load_lora(models, lora, recipe["lora_scale"])
    seeds = recipe["batch_seeds"]
    drawn = list(sampling.draw(models, [recipe["prompt"]], seeds, config))
    with atomic_file(out) as part:
        write_image(drawn[seeds.index(recipe["seed"])], part, recipe)


def _check_weights(image: Path, recipe: Mapping[str, Any], found: Mapping[str, Any], given: Mapping[str, Path | None]) -> None:
    for name in WEIGHTS_DIGESTS:
        if found.get(name) != recipe.get(name):
            option = {"lora_sha256": "lora", "embedding_sha256": "embedding"}.get(name, "model")
            drew = f"was drawn by {name} {recipe[name]}: give these weights" if name in recipe else "was drawn without one"
            raise ValueError(f"--{option}: given {given[option] or 'none'}, and {image} {drew}")


def _compared(image: Path, again: Path) -> str:
    if image.read_bytes() == again.read_bytes():
        return f"the same bytes as {image}"
    return f"not the same bytes as {image}: it was drawn by other versions of the libraries, or on another machine's device"


if __name__ == "__main__":
    main()
