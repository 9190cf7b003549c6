"""Teach a model a word for what images show (textual inversion) and change nothing of it; or the word together with a LoRA.

Reads the encoded images, the captions where images are described by them, and the merge, whose text encoder and UNet are
loaded and stay as they are. Trains the vectors that the text encoder reads for the word, a few kilobytes. Writes
learned_embeds.safetensors, history.csv and in previews/ what was drawn while training; with `tuned: lora` (pivotal tuning) also
pytorch_lora_weights.safetensors, and with `keep_every` what was kept on the way.
`StableDiffusionPipeline.load_textual_inversion` reads the file, and A1111 and ComfyUI read it as a word that is called as the
file.

It is a stage of its own because it is what a sweep over vectors repeats. A run that was interrupted goes on from its last
checkpoint in .checkpoints/ and ends with the same bytes; one whose result DVC could not note takes it from there.
"""

from dataclasses import asdict
from pathlib import Path

from stages.lora.config import TextualInversionConfig, check_seed, check_vectors
from stages.pipeline.command import run
from stages.pipeline.config import HousekeepingConfig, RuntimeConfig


def stage(  # noqa: PLR0913 (its parameters are the command line)
    config: TextualInversionConfig,
    runtime: RuntimeConfig,
    housekeeping: HousekeepingConfig,
    images: Path,
    model: Path,
    vectors: int,
    seed: int,
    out: Path,
    dataset: Path | None = None,
) -> None:
    """Train a word of so many vectors for `model`, and write it to the directory `out`.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        housekeeping: the section `housekeeping`.
        images: the file of encoded images.
        model: the directory of the model that learns the word.
        vectors: of the word, at least 1.
        seed: of the order of the images, texts, noise, timesteps and augmentation, and of a LoRA's first weights; at least 0.
        out: the directory to write the word to.
        dataset: the directory of the images' captions; needed with `templates: captions`.
    """
    check_vectors(vectors)
    check_seed(seed)
    if config.templates == "captions" and dataset is None:
        raise ValueError("--dataset: is needed with templates=captions: give the directory of the captions")

    from stages.dataset.metadata import TEST, TRAIN, read_dataset
    from stages.drawing.preview_images import previewing
    from stages.encoding.data_warnings import say_problems, too_long
    from stages.encoding.encoded_files import read_encoded_images
    from stages.encoding.prompts import load_tokenizer, token_counts
    from stages.encoding.words import add_word
    from stages.lora.run import Previews, Run, TrainedPrompts
    from stages.lora.textual_inversion import textual_inversion_streams, word_of
    from stages.lora.training import train
    from stages.pipeline.resume import resumable
    from stages.pipeline.torch_runtime import prepare, weight_dtype

    word, encoded, captions = word_of(config, vectors), read_encoded_images(images), {}
    if config.templates == "captions" and dataset is not None:
        splits = read_dataset(dataset)
        captions = splits[TRAIN] | splits[TEST]
    say_problems(encoded.problems)
    settings = {"config": asdict(config), "runtime": asdict(runtime), "vectors": vectors, "seed": seed, "captions": captions}
    device = prepare(runtime)
    with resumable("train_textual_inversion", settings, [images, model], out) as folder:
        if folder is None:
            return
        streams, held_out, prompts = textual_inversion_streams(encoded, captions, config, word, seed)
        tokenizer = load_tokenizer(model)
        add_word(tokenizer, word)
        counts = dict(zip(prompts, token_counts(tokenizer, prompts), strict=True))
        say_problems(too_long("prompt", counts, tokenizer.model_max_length))
        resolution = encoded.resolution
        previews = Previews(*previewing(model, config.preview_guidance_scale, resolution, config.clip_skip))
        run = Run(
            model,
            streams,
            config,
            housekeeping,
            config.rank,
            seed,
            device,
            weight_dtype(runtime),
            cuda_graphs=runtime.cuda_graphs,
            folder=folder,
            trained_prompts=TrainedPrompts(prompts, config.clip_skip, word),
            previews=previews,
            held_out=held_out,
            data={"resolution": resolution, "clip_skip": config.clip_skip, "vectors": vectors},
        )
        train(run, out)


if __name__ == "__main__":
    run(stage)
