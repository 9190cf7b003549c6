"""Embed the captions with the text encoder of one merge.

Reads both splits' metadata.csv of the dataset, and the tokenizer and text encoder of a model in diffusers layout. Writes one
safetensors file with the embeddings of every caption and of the empty one, which stands in for captions that training drops.

It is a stage of its own because it is what all LoRAs on a merge share, whatever their rank; training never loads the text
encoder.
"""

from pathlib import Path

from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import ClipSkip, RuntimeConfig, strict

BATCH_SIZE = 32
"""Captions that are embedded together; no setting, because the last bits of the result depend on it."""


@dataclass(frozen=True, config=strict)
class EncodeCaptionsConfig:
    """How captions are embedded.

    Attributes:
        clip_skip: layers left out at the end of the text encoder; 0 uses all (A1111 calls that 1).
    """

    clip_skip: ClipSkip


def stage(config: EncodeCaptionsConfig, runtime: RuntimeConfig, dataset: Path, model: Path, out: Path) -> None:
    """Embed the captions of the folder `dataset` with the text encoder of `model`, to the file `out`.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        dataset: the directory of the images and their captions.
        model: the directory of the model whose text encoder embeds them.
        out: the .safetensors file to write.
    """
    from stages.dataset.metadata import TEST, TRAIN, read_dataset

    splits = read_dataset(dataset)
    captions = splits[TRAIN] | splits[TEST]

    from stages.encoding.choices import chosen
    from stages.encoding.data_warnings import caption_problems, say_problems
    from stages.encoding.encoded_files import EncodedCaptions, write_encoded
    from stages.encoding.prompts import embed_prompts, load_text_encoder, token_counts
    from stages.pipeline.torch_runtime import prepare

    tokenizer, text_encoder = load_text_encoder(model, prepare(runtime))
    texts = list(captions.values())
    of_training = {name: chosen(caption) for name, caption in splits[TRAIN].items()}
    tokens = token_counts(tokenizer, list(of_training.values()))
    problems = caption_problems(of_training, tokens, tokenizer.model_max_length)
    say_problems(problems)
    embeds = embed_prompts(tokenizer, text_encoder, ["", *map(chosen, texts)], config.clip_skip, BATCH_SIZE)
    encoded = EncodedCaptions(list(captions), texts, embeds[1:], embeds[0], config.clip_skip, tuple(problems))
    write_encoded(encoded, out)


if __name__ == "__main__":
    run(stage)
