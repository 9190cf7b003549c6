"""Train a LoRA on images with captions.

Reads the encoded images, the captions embedded by the merge's text encoder, a folder of class images, and the merge itself, of
which only the UNet is loaded; where there are class images, its text encoder and its VAE
encode them before; and with `train_text_encoder`, its text encoder is trained, too. Writes
pytorch_lora_weights.safetensors, history.csv (step, epoch, loss, learning_rate, grad_norm, held_out_loss), and in previews/
what was drawn while training; with `keep_every`, also the LoRAs that were kept on the way, each in a folder step-<steps>/.
`StableDiffusionPipeline.load_lora_weights` reads the file if it is a LoRA or DoRA; it refuses
LoKr and LoHa (`peft_type`), which are for PEFT and this pipeline and, exported, for A1111 and ComfyUI. With `tuned: full`, all
weights of the UNet are trained, and a whole model in diffusers layout is written instead of the LoRA.

It is a stage of its own because it is what a sweep over rank repeats. A run that was interrupted goes on from its last
checkpoint in .checkpoints/ and ends with the same bytes; one whose result DVC could not note takes it from there.
"""

from dataclasses import asdict
from pathlib import Path

from stages.lora.config import Text2imgConfig, check_rank, check_seed
from stages.pipeline.command import run
from stages.pipeline.config import HousekeepingConfig, RuntimeConfig


def stage(  # noqa: PLR0913 (its parameters are the command line)
    config: Text2imgConfig,
    runtime: RuntimeConfig,
    housekeeping: HousekeepingConfig,
    images: Path,
    captions: Path,
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
        images: the file of encoded images.
        captions: the file of encoded captions.
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
    from stages.encoding.choices import chosen
    from stages.encoding.data_warnings import say_problems
    from stages.encoding.encoded_files import read_encoded_captions, read_encoded_images
    from stages.lora.class_stream import read_class_images
    from stages.lora.run import Previews, Run, TrainedPrompts
    from stages.lora.text2img import text2img_streams
    from stages.lora.training import train
    from stages.pipeline.resume import resumable
    from stages.pipeline.torch_runtime import prepare, weight_dtype

    encoded, described = read_encoded_images(images), read_encoded_captions(captions)
    say_problems([*encoded.problems, *described.problems])
    settings = {"config": asdict(config), "runtime": asdict(runtime), "rank": rank, "seed": seed}
    device = prepare(runtime)
    with resumable("train_text2img", settings, [images, captions, class_images, model], out) as folder:
        if folder is None:
            return
        of_class, dtype = read_class_images(class_images), weight_dtype(runtime)
        captioned = text2img_streams(encoded, described, of_class, model, config, seed, device)
        trained = TrainedPrompts(captioned.prompts, described.clip_skip) if captioned.prompts else None
        resolution = encoded.resolution
        previews = Previews(*previewing(model, config.preview_guidance_scale, resolution, described.clip_skip))
        captions_of = dict(zip(described.file_names, described.captions, strict=True))
        kept = [chosen(captions_of[name]) for name in captioned.streams[0].examples.file_names]
        data = {"resolution": resolution, "clip_skip": described.clip_skip, "tag_frequency": tag_frequency(kept)}
        run = Run(
            model,
            captioned.streams,
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
            held_out=captioned.held_out,
            data=data,
        )
        train(run, out)


if __name__ == "__main__":
    run(stage)
