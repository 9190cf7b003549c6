"""Train a LoRA on images with captions.

Reads the encoded images, the captions embedded by the merge's text encoder, and the merge itself, of which only the UNet is
loaded. Writes pytorch_lora_weights.safetensors, history.csv (step, epoch, loss, learning_rate, grad_norm, validation_loss),
and in samples/ what was drawn on the way. `StableDiffusionPipeline.load_lora_weights` reads the file if it is a LoRA or DoRA;
it refuses LoKr and LoHa (`peft_type`), which are for PEFT and this pipeline and, exported, for A1111 and ComfyUI. With
`tuned: full`, all weights of the UNet are trained, and a whole model in diffusers layout is written instead of the LoRA.

It is a stage of its own because it is what a sweep over rank repeats. A run that was interrupted goes on from its last
checkpoint in .checkpoints/ and ends with the same bytes; one whose result DVC could not note takes it from there.
"""

from dataclasses import asdict
from pathlib import Path

from pydantic.dataclasses import dataclass

from stages.lora.config import TrainingConfig
from stages.pipeline.command import run
from stages.pipeline.config import Fraction, RuntimeConfig, strict


@dataclass(frozen=True, config=strict)
class TrainText2imgConfig(TrainingConfig):
    """A captioned LoRA.

    Attributes:
        caption_dropout: share of the samples that are trained with the empty caption, for classifier-free guidance.
    """

    caption_dropout: Fraction


def stage(
    config: TrainText2imgConfig, runtime: RuntimeConfig, images: Path, captions: Path, model: Path, rank: int, out: Path
) -> None:
    """Train a LoRA of rank `rank` on the UNet of `model`, and write it to the directory `out`.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        images: the file of encoded images.
        captions: the file of encoded captions.
        model: the directory of the model to tune.
        rank: the rank of the LoRA, at least 1.
        out: the directory to write the LoRA to.
    """
    if rank < 1:
        raise ValueError(f"--rank: given {rank}: must be at least 1")

    from stages.encoding.data_warnings import say_problems
    from stages.encoding.encoded_files import pair_captions, read_encoded_captions, read_encoded_images
    from stages.lora.batches import Stream
    from stages.lora.previews import SampleSize
    from stages.lora.run import Place, tune
    from stages.pipeline.resume import resumable
    from stages.pipeline.torch_runtime import prepare, weight_dtype

    encoded, described = read_encoded_images(images), read_encoded_captions(captions)
    examples = pair_captions(encoded, described)
    say_problems([*encoded.problems, *described.problems])
    stream = Stream("instance", examples, caption_dropout=config.caption_dropout)
    settings = {"config": asdict(config), "runtime": asdict(runtime), "rank": rank}
    device = prepare(runtime)
    with resumable("train_text2img", settings, [images, captions, model], out) as folder:
        if folder is None:
            return
        place = Place(device, weight_dtype(runtime), folder / "checkpoint.pt")
        samples = SampleSize(encoded.resolution, described.clip_skip)
        tune(model, [stream], config, rank, place, out, samples=samples)


if __name__ == "__main__":
    run(stage)
