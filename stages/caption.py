"""Describe every image in words.

Reads a folder of images with manifest.csv, which holds the captions that they came with, and for those without one BLIP
(`caption.model`). Writes the same images with metadata.csv, whose columns are file_name and caption, into train/ and, those
that are held out from training, into test/: `datasets.load_dataset` reads both as splits of an imagefolder; diffusers' training
scripts are given train/.

A stage of its own because captioning is slow beside everything else that is done to images, and DreamBooth does not read
captions. What a caption names is not learnt by the trigger word: `caption.prefix` puts the word in front of every
caption, `caption.drop_phrases` and `caption.drop_common_phrases` take out the phrases that it shall stand for, such as
"*hair*" for a character whose hair never changes. Captions that a user wrote (`caption.own`) lose nothing: they get the
prefix and the suffix where they do not hold them yet.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from stages.dataset.config import CaptionEditsConfig, CaptioningConfig
from stages.pipeline.command import run
from stages.pipeline.config import ModelSource, RuntimeConfig, strict
from stages.pipeline.outputs import atomic_directory
from stages.pipeline.wording import refuse_unknown_sets


@dataclass(frozen=True, config=strict)
class CaptionConfig(CaptioningConfig, CaptionEditsConfig):
    """How captions are written, and what is done to them afterwards.

    Attributes:
        own: whether captions that images came with are used, or all images described anew.
        model: BLIP for captioning, a directory or a hub id with its commit; null where all images have captions of their own.
    """

    own: Literal["use", "ignore"]
    model: ModelSource | None


def stage(config: CaptionConfig, runtime: RuntimeConfig, images: Path, out: Path) -> None:
    """Caption the images of the folder `images`.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        images: the directory that the stage download wrote.
        out: the directory to write: the images and their captions.
    """
    from stages.dataset.captions import complete_caption, edit_captions
    from stages.dataset.metadata import TEST, TRAIN, read_manifest, write_captions

    rows = read_manifest(images)
    if not rows:
        raise ValueError(f"{images} holds no images")
    given = {row.file_name: row.caption for row in rows if row.caption.strip()}
    own = given if config.own == "use" else {}
    asked = [row.file_name for row in rows if row.file_name not in own]
    print(f"captions: {len(own)} of the images' own, {len(asked)} by the captioner", file=sys.stderr)
    if len(own) < len(given):
        print(f"caption.own is ignore: captions that images came with are not used ({len(given)})", file=sys.stderr)
    written = _describe(config, runtime, images, asked) if asked else []
    sets = {row.file_name: row.image_set for row in rows}
    refuse_unknown_sets("caption.prefixes", config.prefixes, sets.values())
    edited = edit_captions(written, config, [sets[name] for name in asked])
    captions = dict(zip(asked, edited, strict=True))
    captions |= {name: complete_caption(caption, config, sets[name]) for name, caption in own.items()}
    _warn(dict(zip(asked, written, strict=True)), captions)
    with atomic_directory(out) as folder:
        for split in (TRAIN, TEST):
            names = [row.file_name for row in rows if row.split == split]
            if names:
                (folder / split).mkdir()
                write_captions(folder / split, {name: captions[name] for name in names})
            for name in names:
                shutil.copyfile(images / name, folder / split / name)


def _describe(config: CaptionConfig, runtime: RuntimeConfig, images: Path, names: Sequence[str]) -> list[str]:
    """Have BLIP look at the images of these names."""
    if config.model is None:
        raise ValueError(
            f"caption.model is null, and images have no caption to use ({len(names)}), the first {names[0]} "
            f"({images / 'manifest.csv'} says where it comes from): write one beside it, or name a captioner"
        )
    from stages.dataset.captioner import generate_captions, load_blip
    from stages.pipeline.hub.repositories import fetch_model
    from stages.pipeline.progress import track
    from stages.pipeline.torch_runtime import prepare, weight_dtype

    device = prepare(runtime)
    model, processor = load_blip(fetch_model("caption.model", config.model), device, weight_dtype(runtime))
    captions = generate_captions(model, processor, [images / name for name in names], config)
    return list(track(captions, "captions", total=len(names)))


def _warn(written: Mapping[str, str], captions: Mapping[str, str]) -> None:
    """Point at captions that the model left empty, and at those that the text encoder will not read to the end."""
    from stages.dataset.captions import TOKEN_LIMIT, likely_tokens
    from stages.encoding.data_warnings import say_problems, too_long

    say_problems(f"{name}: the captioner has no words for it" for name, caption in written.items() if not caption.strip())
    guesses = {name: likely_tokens(caption) for name, caption in captions.items()}
    say_problems(f"{line}; tokens are guessed from the words" for line in too_long("caption", guesses, TOKEN_LIMIT))


if __name__ == "__main__":
    run(stage)
