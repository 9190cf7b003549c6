"""Encode the images with the VAE, once for the whole sweep.

Reads a folder of PNG images with manifest.csv, and a VAE. Writes one safetensors file with the mean and the standard deviation
of the VAE's posterior for every image and for its mirror image, and where images have masks, how much of each pixel of the
latents belongs to the subject, so that training draws from the same distribution as if it
encoded anew at each step, and never loads the VAE.

It is a stage of its own because it depends on neither alpha nor captions: all merges share one VAE, and an edited caption
reruns nothing here.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import Count, Resolution, RuntimeConfig, strict


@dataclass(frozen=True, config=strict)
class EncodeImagesConfig:
    """How images are brought to size and encoded.

    Attributes:
        resolution: pixels of one side; the shorter side is resized to it and the middle is cropped.
        max_aspect_ratio: 1 makes every image that square; with 2, images are brought to the best of several sizes of about
            the same area, from 1:2 to 2:1, and hardly cropped. Such sizes have sides that are multiples of 8 pixels of the
            latents, 64 of the image in Stable Diffusion.
        interpolation: of the resizing.
        batch_size: images that are encoded together; the last bits of the result depend on it.
    """

    resolution: Resolution
    max_aspect_ratio: Annotated[float, Field(ge=1, le=4)]
    interpolation: Literal["lanczos", "bicubic", "bilinear"]
    batch_size: Count


def stage(config: EncodeImagesConfig, runtime: RuntimeConfig, images: Path, vae: Path, out: Path) -> None:
    """Encode the images of the folder `images` with the VAE in the folder `vae`, to the file `out`.

    Args:
        config: the section of params.yaml named as the stage.
        runtime: the section `runtime`.
        images: the directory of the .png images, and of the manifest that says which are held out from training.
        vae: the directory of the VAE.
        out: the .safetensors file to write.
    """
    from stages.dataset.metadata import MASKS, TEST, read_manifest

    rows = read_manifest(images)
    if not rows:
        raise ValueError(f"{images}: no images in it; run the stage download first")
    paths = [images / row.file_name for row in rows]
    held_out = tuple(row.file_name for row in rows if row.split == TEST)

    from stages.encoding.buckets import bucket_sizes, nearest_bucket
    from stages.encoding.data_warnings import say_problems, size_problems
    from stages.encoding.encoded_files import EncodedImages, write_encoded
    from stages.encoding.latents import encode_masks, encode_mixed, image_size, load_vae, say_sizes, vae_scale_factor
    from stages.pipeline.torch_runtime import prepare

    autoencoder = load_vae(vae, prepare(runtime))
    allowed = bucket_sizes(config.resolution, 8 * vae_scale_factor(autoencoder), config.max_aspect_ratio)
    given = {path: image_size(path) for path in paths}
    sizes = {path: nearest_bucket(size, allowed) for path, size in given.items()}
    problems = size_problems({path.name: size for path, size in given.items()}, {path.name: sizes[path] for path in paths})
    say_sizes(sizes)
    say_problems(problems)
    mean, std, shapes = encode_mixed(autoencoder, sizes, config.interpolation, config.batch_size)
    masks = {images / row.file_name: images / MASKS / row.file_name if row.mask_sha256 else None for row in rows}
    repeated, in_sets = any(row.repeats != 1 for row in rows), any(row.image_set for row in rows)
    encoded = EncodedImages(
        [path.name for path in paths],
        mean,
        std,
        autoencoder.config["scaling_factor"],
        config.resolution,
        shapes,
        tuple(problems),
        held_out,
        encode_masks(masks, sizes, vae_scale_factor(autoencoder)),
        tuple(row.repeats for row in rows) if repeated else (),
        tuple(row.image_set for row in rows) if in_sets else (),
    )
    write_encoded(encoded, out)


if __name__ == "__main__":
    run(stage)
