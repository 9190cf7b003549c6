"""Describe every image in words.

Reads a folder of images with manifest.csv, and BLIP (`caption.model`). Writes the same images with metadata.csv, whose
columns are file_name and caption: an imagefolder that `datasets.load_dataset` and diffusers' training scripts read.

A stage of its own because captioning is slow beside everything else that is done to images, and DreamBooth does not read
captions. What a caption names is not learnt by the trigger word: `caption.prefix` puts the word in front of every
caption, `caption.drop_phrases` and `caption.drop_common_phrases` take out the phrases that it shall stand for, such as
"*hair*" for a character whose hair never changes.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import Count, RuntimeConfig, Source, Text, strict
from stages.pipeline.outputs import atomic_directory


@dataclass(frozen=True, config=strict)
class CaptionConfig:
    """How captions are written, and what is done to them afterwards.

    Attributes:
        model: BLIP for captioning, a directory or a hub id with its commit.
        prompt: words that every caption begins with, given to the model before it looks; null for none.
        num_beams: width of the beam search; 1 is greedy.
        max_new_tokens: most tokens of a caption.
        batch_size: images at once.
        prefix: phrases put in front of every caption, such as a trigger word; null for none.
        drop_phrases: shell patterns of the phrases (what stands between commas) to leave out.
        drop_common_phrases: leave out phrases that stand in at least this share of the captions; null keeps them.
        suffix: phrases put behind every caption; null for none.
    """

    model: Source
    prompt: Text | None
    num_beams: Annotated[int, Field(ge=1, le=32)]
    max_new_tokens: Annotated[int, Field(ge=1, le=512)]
    batch_size: Count
    prefix: Text | None
    drop_phrases: tuple[Text, ...]
    drop_common_phrases: Annotated[float, Field(gt=0, le=1)] | None
    suffix: Text | None

    def __post_init__(self) -> None:
        """Refuse a single file: a captioner is a directory of weights, tokenizer and image settings."""
        for leaf in ("file", "sha256"):
            if getattr(self.model, leaf) is not None:
                raise ValueError(f"model.{leaf}: a captioner is a whole directory or repository; set this to null")


def stage(config: CaptionConfig, runtime: RuntimeConfig, images: Path, out: Path) -> None:
    """Caption the images of the folder `images`."""
    from stages.dataset.captions import edit_captions
    from stages.dataset.metadata import read_manifest, write_captions

    names = [row.file_name for row in read_manifest(images)]
    if not names:
        raise ValueError(f"{images} holds no images")
    written = _describe(config, runtime, [images / name for name in names])
    edited = edit_captions(
        written,
        prefix=config.prefix,
        drop=config.drop_phrases,
        drop_common=config.drop_common_phrases,
        suffix=config.suffix,
    )
    _warn(names, written, edited)
    with atomic_directory(out) as folder:
        for name in names:
            shutil.copyfile(images / name, folder / name)
        write_captions(folder, dict(zip(names, edited, strict=True)))


def _describe(config: CaptionConfig, runtime: RuntimeConfig, files: Sequence[Path]) -> list[str]:
    """Have BLIP look at the files."""
    from stages.dataset.captioner import generate_captions, load_blip
    from stages.pipeline.progress import track
    from stages.pipeline.torch_runtime import prepare, weight_dtype

    source = config.model.path or str(config.model.repo)
    model, processor = load_blip(source, config.model.revision, prepare(runtime), weight_dtype(runtime))
    captions = generate_captions(
        model,
        processor,
        files,
        prompt=config.prompt,
        num_beams=config.num_beams,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
    )
    return list(track(captions, "captions", total=len(files)))


def _warn(names: Sequence[str], written: Sequence[str], edited: Sequence[str]) -> None:
    """Point at captions that the model left empty, and at those that the text encoder will not read to the end."""
    from stages.dataset.captions import TOKEN_LIMIT, likely_tokens

    for name, before, after in zip(names, written, edited, strict=True):
        if not before.strip():
            print(f"warning: {name}: the captioner has no words for it", file=sys.stderr)
        if likely_tokens(after) > TOKEN_LIMIT:
            print(f"warning: {name}: its caption has over {TOKEN_LIMIT} tokens; the text encoder will cut it", file=sys.stderr)


if __name__ == "__main__":
    run(stage)
