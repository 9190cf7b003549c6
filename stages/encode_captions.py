"""Embed the captions with the text encoder of one merge.

Reads metadata.csv of the dataset, and the tokenizer and text encoder of a model in diffusers layout. Writes one safetensors
file with the embeddings of every caption and of the empty one, which stands in for captions that training drops.

It is a stage of its own because it is what all LoRAs on a merge share, whatever their rank; training never loads the text
encoder.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import Count, RuntimeConfig, strict


@dataclass(frozen=True, config=strict)
class EncodeCaptionsConfig:
    """How captions are embedded.

    Attributes:
        clip_skip: layers left out at the end of the text encoder; 0 is what A1111 calls 1. Set `generate.clip_skip` alike.
        batch_size: captions that are embedded together; the last bits of the result depend on it.
    """

    clip_skip: Annotated[int, Field(ge=0, le=11)]
    batch_size: Count


def stage(config: EncodeCaptionsConfig, runtime: RuntimeConfig, dataset: Path, model: Path, out: Path) -> None:
    """Embed the captions of the folder `dataset` with the text encoder of `model`, to the file `out`.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        dataset: the directory of the images and their captions.
        model: the directory of the model whose text encoder embeds them.
        out: the .safetensors file to write.
    """
    from stages.dataset.metadata import read_captions

    captions = read_captions(dataset)

    from stages.encoding.data_warnings import caption_problems, say_problems
    from stages.encoding.encoded_files import EncodedCaptions, write_encoded
    from stages.encoding.prompts import embed_prompts, load_text_encoder, token_counts
    from stages.pipeline.torch_runtime import prepare

    tokenizer, text_encoder = load_text_encoder(model, prepare(runtime))
    texts = list(captions.values())
    problems = caption_problems(captions, token_counts(tokenizer, texts), tokenizer.model_max_length)
    say_problems(problems)
    embeds = embed_prompts(tokenizer, text_encoder, ["", *texts], config.clip_skip, config.batch_size)
    encoded = EncodedCaptions(list(captions), texts, embeds[1:], embeds[0], config.clip_skip, tuple(problems))
    write_encoded(encoded, out)


if __name__ == "__main__":
    run(stage)
