"""Images of mixed shapes: their sizes, their encoding, and the order in which they are shown."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from stages.encoding.buckets import bucket_sizes, cover, nearest_bucket
from stages.encoding.encoded_files import EncodedImages, read_encoded_images, write_encoded
from stages.encoding.latents import encode_images, encode_mixed, load_vae
from stages.lora.batches import (
    Batch,
    Draws,
    MixedBatch,
    Stream,
    batch_at,
    epoch_order,
    held_out_batches,
    names_at,
    tensors_of,
    turn_at,
)
from stages.lora.examples import Examples, split_held_out
from stages.lora.losses import denoising_loss
from tests.drawing.tiny_models import save_tiny_checkpoint
from tests.lora.settings import loss_config, noise_config

DRAWS = Draws(seed=3, num_train_timesteps=1000, random_flip=True, config=noise_config())
SHAPES = [(2, 2)] * 5 + [(1, 4)] * 4 + [(4, 1)] * 2


def make_examples(shapes=SHAPES):
    """Image n has the value n in its own part of the row, and -99 in the padding."""
    length = max(height * width for height, width in shapes)
    mean = torch.full((len(shapes), 2, 4, length), -99.0)
    for number, (height, width) in enumerate(shapes):
        mean[number, ..., : height * width] = number
    prompts = torch.arange(len(shapes)).float().view(-1, 1, 1).expand(-1, 3, 2)
    names = tuple(f"{number}.png" for number in range(len(shapes)))
    return Examples(mean, torch.zeros_like(mean), 1.0, prompts, torch.full((3, 2), -1.0), names, torch.tensor(shapes))


def images_of(batch):
    return batch.latents[:, 0, 0, 0].int().tolist()


def test_sizes_have_one_area_and_sides_of_whole_steps():
    assert bucket_sizes(512, 64, 2) == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    assert bucket_sizes(1024, 64, 1) == [(1024, 1024)]
    for width, height in bucket_sizes(768, 64, 4):
        assert width % 64 == height % 64 == 0
        assert 0.8 * 768**2 < width * height <= 768**2
    with pytest.raises(ValueError, match="resolution: given 500: must be a multiple of 64"):
        bucket_sizes(500, 64, 2)


def test_an_image_gets_the_nearest_shape():
    sizes = bucket_sizes(512, 64, 2)
    assert nearest_bucket((1000, 1000), sizes) == (512, 512)
    assert nearest_bucket((1280, 1000), sizes) == (576, 448)
    assert nearest_bucket((100, 9000), sizes) == (384, 640)


@pytest.mark.parametrize("image", [(511, 512), (1000, 333), (3, 4000), (97, 31)])
@pytest.mark.parametrize("size", [(512, 512), (384, 640), (640, 384)])
def test_the_resized_image_just_covers_its_size(image, size):
    width, height = cover(image, size)
    assert width >= size[0]
    assert height >= size[1]
    assert width == size[0] or height == size[1]
    assert abs(width * image[1] - height * image[0]) <= max(image)


def test_mixed_images_are_encoded_as_each_alone(tmp_path):
    vae = load_vae(save_tiny_checkpoint(tmp_path / "model") / "vae", torch.device("cpu"))
    sizes = {}
    for number, size in enumerate([(96, 32), (64, 64), (96, 32)]):
        path = tmp_path / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        sizes[path] = size
    mean, std, shapes = encode_mixed(vae, sizes, "lanczos", 1)
    assert shapes is not None
    assert shapes.tolist() == [[8, 24], [16, 16], [8, 24]]
    write_encoded(EncodedImages([path.name for path in sizes], mean, std, 1.0, 64, shapes), tmp_path / "images")
    back = read_encoded_images(tmp_path / "images")
    examples = Examples(back.mean, back.std, 1.0, torch.zeros(3, 1, 1), torch.zeros(1, 1), shapes=back.shapes)
    for number, (path, size) in enumerate(sizes.items()):
        alone = encode_images(vae, [path], size, "lanczos", 1)
        for mirrored in range(2):
            for ours, theirs in zip(examples.posterior(number, mirrored), alone, strict=True):
                assert torch.equal(ours, theirs[0, mirrored])
    same = encode_mixed(vae, dict.fromkeys(sizes, (64, 64)), "lanczos", 1)
    assert same[2] is None
    assert same[0].shape == (3, 2, 4, 16, 16)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7])
def test_batches_hold_one_shape_and_every_image_comes_equally_often(batch_size):
    stream = Stream("instance", make_examples())
    batches = [batch_at([stream], DRAWS, batch_size, number) for number in range(2 * len(SHAPES))]
    shown = []
    for batch in batches:
        assert isinstance(batch, Batch)
        images = images_of(batch)
        assert {SHAPES[image] for image in images} == {tuple(batch.latents.shape[2:])}
        assert batch.weights.tolist() == pytest.approx([1 / batch_size] * batch_size)
        assert batch.encoder_hidden_states[:, 0, 0].int().tolist() == images
        shown += images
    half = len(shown) // 2
    for part in (shown[:half], shown[half:]):
        assert Counter(part) == dict.fromkeys(range(len(SHAPES)), batch_size)


def test_every_bucket_shows_each_of_its_images_before_any_again():
    stream = Stream("instance", make_examples())
    shown = [image for number in range(11) for image in images_of(batch_at([stream], DRAWS, 2, number))]
    for shape in set(SHAPES):
        of_shape = [image for image in shown if SHAPES[image] == shape]
        count = SHAPES.count(shape)
        assert len(set(of_shape[:count])) == len(set(of_shape[count:])) == count


def test_turns_keep_to_their_shares():
    """At the end of each epoch, no bucket is more than a batch off its share."""
    shapes = [(2, 2)] * 61 + [(1, 4)] * 30 + [(4, 1)] * 9
    stream = Stream("instance", make_examples(shapes))
    turns = [turn_at(stream, 0, 4, number)[0] for number in range(100)]
    for epoch in range(1, 5):
        for bucket, images in stream.examples.buckets.items():
            assert abs(turns[: 25 * epoch].count(bucket) - epoch * len(images) / 4) <= 1
    assert turns[:25] != sorted(turns[:25])
    assert turns != [turn_at(stream, 1, 4, number)[0] for number in range(100)]


def test_a_batch_depends_on_nothing_that_was_drawn_before():
    stream = Stream("instance", make_examples())
    late = batch_at([stream], DRAWS, 3, 40)
    for number in range(6):
        batch_at([stream], DRAWS, 3, number)
    epoch_order.cache_clear()
    again = batch_at([stream], DRAWS, 3, 40)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(late), tensors_of(again), strict=True))


def test_names_are_those_of_the_batch():
    streams = [Stream("instance", make_examples()), Stream("class", make_examples([(2, 2)] * 3))]
    for number in range(8):
        batch = batch_at(streams, DRAWS, 3, number)
        parts = batch.parts if isinstance(batch, MixedBatch) else (batch,)
        shown = [f"{image}.png" for part in parts for image in images_of(part)]
        assert names_at(streams, DRAWS.seed, 3, number) == shown


def test_held_out_images_keep_their_shapes():
    kept, held = split_held_out(make_examples(), ["9.png", "0.png", "6.png", "5.png"])
    assert held is not None
    assert held.file_names == ("0.png", "5.png", "6.png", "9.png")
    assert held.buckets == {"2x2": [0], "4x1": [1, 2], "1x4": [3]}
    assert kept.file_names == tuple(f"{number}.png" for number in (1, 2, 3, 4, 7, 8, 10))
    assert kept.buckets == {"2x2": [0, 1, 2, 3], "4x1": [4, 5], "1x4": [6]}
    batches = held_out_batches(held, DRAWS, 3)
    shown = [image for batch in batches for image in images_of(batch)]
    assert Counter(shown) == {int(name.removesuffix(".png")): 4 for name in held.file_names}
    per_sample = torch.cat([batch.weights for batch in batches]) / len(batches)
    torch.testing.assert_close(per_sample, torch.full((16,), 1 / 16))


def test_loss_of_several_shapes_is_the_sum_of_theirs():
    """Class images are squares: beside wide images of the subject, either has a forward pass."""
    streams = [Stream("instance", make_examples([(1, 4)] * 3)), Stream("class", make_examples([(2, 2)] * 3), weight=0.5)]
    batch = batch_at(streams, replace(DRAWS, random_flip=False), 2, 0)
    assert isinstance(batch, MixedBatch)
    loss_fn = partial(denoising_loss, noise_scheduler=DDPMScheduler(), config=loss_config(snr_gamma=5.0))
    unet: Any = lambda latents, timesteps, hidden, return_dict: (0.5 * latents,)  # noqa: E731
    loss = loss_fn(unet, batch)
    assert loss.item() == pytest.approx(sum(loss_fn(unet, part).item() for part in batch.parts))
    shares = [batch.samples(slice(number, None, 2)) for number in range(2)]
    assert loss.item() == pytest.approx(sum(loss_fn(unet, share).item() for share in shares))
    assert math.isfinite(loss.item())
