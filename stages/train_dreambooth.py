"""Train a LoRA on images of one subject that share one prompt (DreamBooth).

Reads the encoded images, the merge and a folder of class images. Embeds the prompts and, where there are class images,
encodes them with the merge's text encoder and VAE, lets go of both, and trains with the UNet alone, or with the text
encoder where that is trained too. Class images keep the class from becoming the subject (prior preservation); a folder
without any leaves that out. Writes pytorch_lora_weights.safetensors, history.csv, and in samples/ what was drawn on the way;
with `tuned: full`, a whole model in diffusers layout instead of the LoRA. `StableDiffusionPipeline.load_lora_weights` reads
the file if it is a LoRA, or a DoRA of the UNet alone. Of DoRA with the text encoder it leaves out a part without a word, and it
refuses LoKr and LoHa (`peft_type`): these are for PEFT and this pipeline and, but for DoRA, exported for A1111 and ComfyUI.

It is a stage of its own because it is what a sweep over rank repeats, and it reads no captions, so an edited caption does
not rerun it. A run that was interrupted goes on from its last checkpoint in .checkpoints/ and ends with the same bytes; one
whose result DVC could not note takes it from there.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from stages.lora.config import TrainingConfig
from stages.pipeline.command import run
from stages.pipeline.config import NonNegative, RuntimeConfig, Text, strict


@dataclass(frozen=True, config=strict)
class TrainDreamboothConfig(TrainingConfig):
    """A LoRA of one subject.

    Attributes:
        instance_prompt: names the subject; the only prompt that its images are trained with. Null where nothing is trained.
        prior_loss_weight: of the class images in the loss; 1 counts them as much as the subject.
        clip_skip: layers left out at the end of the text encoder.
        train_text_encoder: give the text encoder an adapter too, of the same kind and rank; it is then in memory, and embeds
            the prompts at each step.
    """

    instance_prompt: Text | None
    prior_loss_weight: NonNegative
    clip_skip: Annotated[int, Field(ge=0, le=11)]
    train_text_encoder: bool

    def __post_init__(self) -> None:
        """Refuse two things that exclude each other."""
        TrainingConfig.__post_init__(self)
        if self.train_text_encoder and self.tuned == "full":
            raise ValueError("train_text_encoder: given True: only with tuned=lora")


def stage(
    config: TrainDreamboothConfig, runtime: RuntimeConfig, images: Path, class_images: Path, model: Path, rank: int, out: Path
) -> None:
    """Train a LoRA of rank `rank` on the UNet of `model`, and write it to the directory `out`.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        images: the file of encoded images of the subject.
        class_images: the directory of the class images; none in it leaves prior preservation out.
        model: the directory of the model to tune.
        rank: the rank of the LoRA, at least 1.
        out: the directory to write the LoRA to.
    """
    if rank < 1:
        raise ValueError(f"--rank: given {rank}: must be at least 1")

    from stages.encoding.data_warnings import say_problems
    from stages.encoding.encoded_files import read_encoded_images
    from stages.lora.dreambooth import Subject, dreambooth_streams, read_class_images
    from stages.lora.previews import SampleSize
    from stages.lora.run import Place, tune
    from stages.lora.text_encoder import TrainedPrompts
    from stages.pipeline.resume import resumable
    from stages.pipeline.torch_runtime import prepare, weight_dtype

    instance = read_encoded_images(images)
    say_problems(instance.problems)
    settings = {"config": asdict(config), "runtime": asdict(runtime), "rank": rank}
    device = prepare(runtime)
    with resumable("train_dreambooth", settings, [images, class_images, model], out) as folder:
        if folder is None:
            return
        names = [field.name for field in fields(Subject)]
        subject = Subject(**{name: getattr(config, name) for name in names})
        of_class = read_class_images(class_images)
        streams = dreambooth_streams(instance, of_class, model, subject, device)
        place = Place(device, weight_dtype(runtime), folder / "checkpoint.pt")
        prompts = TrainedPrompts(subject.prompts(of_class), config.clip_skip) if config.train_text_encoder else None
        samples = SampleSize(instance.resolution, config.clip_skip)
        tune(model, streams, config, rank, place, out, prompts, samples)


if __name__ == "__main__":
    run(stage)
