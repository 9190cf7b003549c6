"""Held-out images of either training: no batch of any stream shows one."""

from typing import Any

import pytest
import torch
from PIL import Image

from stages.drawing.image_files import write_image
from stages.encoding.encoded_files import EncodedCaptions, EncodedImages
from stages.lora.batches import Draws, batch_at, held_out_batches, names_at
from stages.lora.class_stream import read_class_images
from stages.lora.config import DreamboothConfig, Text2imgConfig
from stages.lora.dreambooth import dreambooth_streams
from stages.lora.text2img import text2img_streams
from tests.drawing.tiny_models import WIDTH, save_tiny_checkpoint
from tests.lora.settings import conf_values, noise_config

CPU = torch.device("cpu")
DRAWS = Draws(seed=3, num_train_timesteps=1000, random_flip=True, config=noise_config())
NAMES = [f"{number}.png" for number in range(6)]
HELD_OUT = ["1.png", "4.png"]
FAR = 1000.0
"""What the latents of held-out images are: no other image's come near it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def class_images(tmp_path_factory):
    """Named as the held-out images are: names are held out of the subject's images alone."""
    folder = tmp_path_factory.mktemp("class")
    for name in NAMES[:3]:
        write_image(Image.new("RGB", (32, 32)), folder / name, {"prompt": "a portrait"})
    return read_class_images(folder)


def images_of(held_out, mixed=False):
    """Six images; if mixed, every other one is upright."""
    values = torch.tensor([FAR if name in held_out else 0.0 for name in NAMES]).view(-1, 1, 1, 1, 1)
    mean = values.expand(-1, 2, 4, 8, 8).contiguous()
    if not mixed:
        return EncodedImages(NAMES, mean, torch.full_like(mean, 0.1), 1.0, 32, held_out=tuple(held_out))
    mean = mean.flatten(3)
    shapes = torch.tensor([[8, 8], [16, 4]] * 3)
    return EncodedImages(NAMES, mean, torch.full_like(mean, 0.1), 1.0, 32, shapes, held_out=tuple(held_out))


def text2img(images, class_images, model):
    embeds = torch.arange(6).float().view(-1, 1, 1).expand(-1, 77, WIDTH)
    captions = EncodedCaptions(NAMES, [f"caption of {name}" for name in NAMES], embeds, torch.zeros(77, WIDTH), 0)
    config = Text2imgConfig(**conf_values("train_text2img"))
    captioned = text2img_streams(images, captions, class_images, model, config, 0, CPU)
    return captioned.streams, captioned.held_out


def dreambooth(images, class_images, model):
    config = DreamboothConfig(**conf_values("train_dreambooth", instance_prompt="asuka", clip_skip=0))
    return dreambooth_streams(images, class_images, model, config, CPU)


def parts_of(batch: Any):
    return batch.parts if hasattr(batch, "parts") else [batch]


@pytest.mark.parametrize("mixed", [False, True], ids=["of one shape", "of two shapes"])
@pytest.mark.parametrize("streams_of", [text2img, dreambooth])
def test_a_held_out_image_is_in_no_batch_of_any_stream(model, class_images, streams_of, mixed):
    """In ten epochs and more, by what the batches hold and by the names that they say they hold."""
    streams, held_out = streams_of(images_of(HELD_OUT, mixed), class_images, model)
    assert [stream.name for stream in streams] == ["instance", "class"]
    assert streams[0].examples.file_names == ("0.png", "2.png", "3.png", "5.png")
    assert streams[1].examples.file_names == ("0.png", "1.png", "2.png")
    shown = set()
    for number in range(20):
        for part in parts_of(batch_at(streams, DRAWS, 3, number)):
            assert part.latents.abs().max() < FAR / 2
        shown |= set(names_at(streams[:1], DRAWS.seed, 3, number))
    assert shown == {"0.png", "2.png", "3.png", "5.png"}
    assert held_out.file_names == tuple(HELD_OUT)
    for batch in held_out_batches(held_out, DRAWS, 3):
        assert batch.latents.min() > FAR / 2


def test_held_out_images_keep_their_captions(model, class_images):
    streams, held_out = text2img(images_of(HELD_OUT), class_images, model)
    assert held_out is not None
    assert streams[0].examples.prompt_embeds[:, 0, 0].tolist() == [0, 2, 3, 5]
    assert held_out.prompt_embeds[:, 0, 0].tolist() == [1, 4]


def test_held_out_images_have_the_instance_prompt(model, class_images):
    streams, held_out = dreambooth(images_of(HELD_OUT), class_images, model)
    assert held_out is not None
    assert torch.equal(held_out.prompt_embeds, streams[0].examples.prompt_embeds[:2])


@pytest.mark.parametrize("streams_of", [text2img, dreambooth])
def test_without_held_out_images_all_are_trained_on(model, class_images, streams_of):
    streams, held_out = streams_of(images_of([]), class_images, model)
    assert streams[0].examples.file_names == tuple(NAMES)
    assert held_out is None
