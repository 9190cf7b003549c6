"""Encode the images with the VAE, once for the whole sweep.

Reads a folder of PNG images and a VAE. Writes one safetensors file with the mean and the standard deviation of the VAE's
posterior for every image and for its mirror image, so that training draws from the same distribution as if it encoded
anew at each step, and never loads the VAE.

It is a stage of its own because it depends on neither alpha nor captions: all merges share one VAE, and an edited caption
reruns nothing here.
"""

from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from stages.pipeline.command import run
from stages.pipeline.config import Count, Resolution, RuntimeConfig, strict


@dataclass(frozen=True, config=strict)
class EncodeImagesConfig:
    """How images are brought to size and encoded.

    Attributes:
        resolution: pixels of one side; the shorter side is resized to it and the middle is cropped.
        interpolation: of the resizing.
        batch_size: images that are encoded together; the last bits of the result depend on it.
    """

    resolution: Resolution
    interpolation: Literal["lanczos", "bicubic", "bilinear"]
    batch_size: Count


def stage(config: EncodeImagesConfig, runtime: RuntimeConfig, images: Path, vae: Path, out: Path) -> None:
    """Encode the images of the folder `images` with the VAE in the folder `vae`, to the file `out`."""
    paths = sorted(images.glob("*.png"))
    if not paths:
        raise ValueError(f"{images}: no .png images in it; run the stage download first")

    from stages.lora.encoded import EncodedImages, write_encoded
    from stages.lora.latents import encode_images, load_vae, warn_of_small_images
    from stages.pipeline.progress import track
    from stages.pipeline.torch_runtime import prepare

    warn_of_small_images(paths, config.resolution)
    autoencoder = load_vae(vae, prepare(runtime))
    mean, std = encode_images(
        autoencoder, list(track(paths, "images")), config.resolution, config.interpolation, config.batch_size
    )
    names = [path.name for path in paths]
    write_encoded(EncodedImages(names, mean, std, autoencoder.config["scaling_factor"], config.resolution), out)


if __name__ == "__main__":
    run(stage)
