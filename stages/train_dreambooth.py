"""Train a LoRA on images of one subject that share one prompt (DreamBooth).

Reads the encoded images, the merge and a folder of class images. Embeds the prompts and, where there are class images,
encodes them with the merge's text encoder and VAE, lets go of both, and trains with the UNet alone, or with the text
encoder where that is trained too. Class images keep the class from becoming the subject (prior preservation); a folder
without any leaves that out. Writes pytorch_lora_weights.safetensors, history.csv, and in previews/ what was drawn while
training, with `keep_every` the LoRAs kept on the way (step-<steps>/); with `tuned: full`, a whole model in diffusers layout
instead of the LoRA. `StableDiffusionPipeline.load_lora_weights` reads the file if it is a LoRA, or a DoRA of the UNet alone. Of
DoRA with the text encoder it leaves out a part without a word, and it refuses LoKr and LoHa (`peft_type`): these are for PEFT
and this pipeline and, but for DoRA, exported for A1111 and ComfyUI.

It is a stage of its own because it is what a sweep over rank repeats, and it reads no captions, so an edited caption does
not rerun it. A run that was interrupted goes on from its last checkpoint in .checkpoints/ and ends with the same bytes; one
whose result DVC could not note takes it from there.
"""

from dataclasses import asdict
from pathlib import Path

from stages.lora.config import DreamboothConfig, check_rank, check_seed
from stages.pipeline.command import run
from stages.pipeline.config import HousekeepingConfig, RuntimeConfig


def stage(  # noqa: PLR0913 (its parameters are the command line)
    config: DreamboothConfig,
    runtime: RuntimeConfig,
    housekeeping: HousekeepingConfig,
    images: Path,
    class_images: Path,
    model: Path,
    rank: int,
    seed: int,
    out: Path,
) -> None:
    """Train a LoRA of rank `rank` on the UNet of `model`, and write it to the directory `out`.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        housekeeping: the section `housekeeping`.
        images: the file of encoded images of the subject.
        class_images: the directory of the class images; none in it leaves prior preservation out.
        model: the directory of the model to tune.
        rank: the rank of the LoRA, at least 1.
        seed: of the LoRA's first weights, the order of the images, noise, timesteps and augmentation; at least 0.
        out: the directory to write the LoRA to.
    """
    check_rank(rank)
    check_seed(seed)

    from stages.checkpoints.adapters.kohya_metadata import tag_frequency
    from stages.drawing.preview_images import previewing
    from stages.encoding.data_warnings import say_problems
    from stages.encoding.encoded_files import read_encoded_images
    from stages.lora.class_stream import read_class_images
    from stages.lora.dreambooth import dreambooth_streams, instance_prompts, prompts_of
    from stages.lora.run import Previews, Run, TrainedPrompts
    from stages.lora.training import train
    from stages.pipeline.resume import resumable
    from stages.pipeline.torch_runtime import prepare, weight_dtype

    instance = read_encoded_images(images)
    say_problems(instance.problems)
    settings = {"config": asdict(config), "runtime": asdict(runtime), "rank": rank, "seed": seed}
    device = prepare(runtime)
    with resumable("train_dreambooth", settings, [images, class_images, model], out) as folder:
        if folder is None:
            return
        of_class, dtype = read_class_images(class_images, config.class_prompt), weight_dtype(runtime)
        streams, held_out = dreambooth_streams(instance, of_class, model, config, device)
        trained = (
            TrainedPrompts(prompts_of(config, instance, of_class), config.clip_skip) if config.train_text_encoder else None
        )
        resolution = instance.resolution
        previews = Previews(*previewing(model, config.preview_guidance_scale, resolution, config.clip_skip))
        prompt_of = dict(zip(instance.file_names, instance_prompts(config, instance), strict=True))
        tags = tag_frequency([prompt_of[name] for name in streams[0].examples.file_names])
        data = {"resolution": resolution, "clip_skip": config.clip_skip, "tag_frequency": tags}
        run = Run(
            model,
            streams,
            config,
            housekeeping,
            rank,
            seed,
            device,
            dtype,
            cuda_graphs=runtime.cuda_graphs,
            folder=folder,
            trained_prompts=trained,
            previews=previews,
            held_out=held_out,
            data=data,
        )
        train(run, out)


if __name__ == "__main__":
    run(stage)
