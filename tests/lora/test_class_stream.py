"""Images of the class as a second stream of either training."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from stages.drawing.image_files import write_image
from stages.encoding.encoded_files import EncodedCaptions, EncodedImages
from stages.encoding.prompts import embed_prompts, load_text_encoder
from stages.lora.class_stream import read_class_images
from stages.lora.config import DreamboothConfig, Text2imgConfig
from stages.lora.dreambooth import dreambooth_streams, prompts_of
from stages.lora.text2img import text2img_streams
from tests.drawing.tiny_models import WIDTH, save_tiny_checkpoint
from tests.lora.settings import conf_values

CPU = torch.device("cpu")
PROMPTS = ["a cat", "a hat", "a cat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path):
    for number, prompt in enumerate(PROMPTS):
        write_image(Image.new("RGB", (32, 32), (80 * number, 0, 0)), tmp_path / f"{number}.png", {"prompt": prompt})
    return tmp_path


def instance():
    mean = torch.zeros(2, 2, 4, 8, 8)
    images = EncodedImages(["a.png", "b.png"], mean, mean, 1.0, 32)
    embeds = torch.randn(2, 77, WIDTH, generator=torch.Generator().manual_seed(0))
    return images, EncodedCaptions(["a.png", "b.png"], ["a", "b"], embeds, torch.ones(77, WIDTH), 1)


def text2img(model, folder, **changes):
    values = {"caption_dropout": 0.25, "prior_loss_weight": 0.3} | changes
    config = Text2imgConfig(**conf_values("train_text2img", **values))
    return text2img_streams(*instance(), read_class_images(folder), model, config, 0, CPU).streams


def dreambooth(model, folder, **changes):
    values = {"instance_prompt": "asuka", "clip_skip": 1, "prior_loss_weight": 0.3} | changes
    config = DreamboothConfig(**conf_values("train_dreambooth", **values))
    return dreambooth_streams(instance()[0], read_class_images(folder), model, config, CPU)[0]


@pytest.mark.parametrize("streams_of", [text2img, dreambooth])
def test_each_class_image_comes_with_its_own_prompt_and_the_weight(model, folder, streams_of):
    first, of_class = streams_of(model, folder)
    assert (first.name, first.weight, of_class.name, of_class.weight) == ("instance", 1.0, "class", 0.3)
    assert of_class.examples.file_names == ("0.png", "1.png", "2.png")
    tokenizer, text_encoder = load_text_encoder(model, CPU)
    expected = embed_prompts(tokenizer, text_encoder, PROMPTS, 1, batch_size=1)
    torch.testing.assert_close(of_class.examples.prompt_embeds, expected)
    assert not torch.equal(of_class.examples.mean[0], of_class.examples.mean[1])


def test_captions_are_dropped_alike_and_dreambooth_drops_none(model, folder):
    assert [stream.caption_dropout for stream in text2img(model, folder)] == [0.25, 0.25]
    assert torch.equal(text2img(model, folder)[1].examples.empty_prompt_embeds, torch.ones(77, WIDTH))
    assert [stream.caption_dropout for stream in dreambooth(model, folder)] == [0.0, 0.0]


def test_where_the_text_encoder_is_trained_prompts_are_numbers(model, folder):
    first, of_class = dreambooth(model, folder, train_text_encoder=True)
    assert first.examples.prompt_embeds.tolist() == [0, 0]
    assert of_class.examples.prompt_embeds.tolist() == [1, 2, 1]
    config = DreamboothConfig(**conf_values("train_dreambooth", instance_prompt="asuka", clip_skip=0))
    assert prompts_of(config, instance()[0], read_class_images(folder)) == ["asuka", "a cat", "a hat"]


def test_each_image_set_has_the_instance_prompt_of_its_subject(model, folder):
    images = replace(instance()[0], image_sets=("boys", "girls"))
    settings = {"instance_prompt": "asuka", "instance_prompts": {"boys": "kaji"}, "clip_skip": 1, "prior_loss_weight": 0.3}
    config = DreamboothConfig(**conf_values("train_dreambooth", **settings, train_text_encoder=True))
    assert prompts_of(config, images, read_class_images(folder)) == ["kaji", "asuka", "a cat", "a hat"]
    first, of_class = dreambooth_streams(images, read_class_images(folder), model, config, CPU)[0]
    assert first.examples.prompt_embeds.tolist() == [0, 1]
    assert of_class.examples.prompt_embeds.tolist() == [2, 3, 2]
    embedded = replace(config, train_text_encoder=False)
    first, _ = dreambooth_streams(images, read_class_images(folder), model, embedded, CPU)[0]
    tokenizer, text_encoder = load_text_encoder(model, CPU)
    expected = embed_prompts(tokenizer, text_encoder, ["kaji", "asuka"], 1, batch_size=1)
    torch.testing.assert_close(first.examples.prompt_embeds, expected)


def test_an_image_set_without_a_prompt_and_one_that_is_not_there_are_named(folder):
    images = replace(instance()[0], image_sets=("boys", "girls"))

    def prompts(**settings):
        config = DreamboothConfig(**conf_values("train_dreambooth", clip_skip=0, **settings))
        return prompts_of(config, images, read_class_images(folder))

    with pytest.raises(ValueError, match=r"instance_prompt: is null, and instance_prompts has none for the image set 'girls'"):
        prompts(instance_prompt=None, instance_prompts={"boys": "kaji"})
    with pytest.raises(ValueError, match=r"instance_prompts: names 'cats', which is no set of these images; there are: b"):
        prompts(instance_prompt="asuka", instance_prompts={"cats": "tama"})


def test_captions_are_numbers_too_where_the_text_encoder_is_trained(model, folder):
    """The empty prompt, which stands in for dropped captions, is the first; equal texts are one prompt."""
    first, of_class = text2img(model, folder, train_text_encoder=True)
    captions = first.examples.prompt_embeds.tolist()
    assert first.examples.empty_prompt_embeds.item() == of_class.examples.empty_prompt_embeds.item() == 0
    assert sorted(set(captions)) == list(range(1, 1 + len(set(captions))))
    assert of_class.examples.prompt_embeds.tolist() == [max(captions) + 1, max(captions) + 2, max(captions) + 1]


def test_all_class_images_may_have_one_prompt(folder):
    assert read_class_images(folder, "a thing").prompts == ["a thing"]
    assert read_class_images(folder).prompts == ["a cat", "a hat"]


@pytest.mark.parametrize("streams_of", [text2img, dreambooth])
def test_without_class_images_there_is_one_stream(model, tmp_path, streams_of):
    assert len(streams_of(model, tmp_path)) == 1


@pytest.mark.parametrize("streams_of", [text2img, dreambooth])
def test_class_images_that_weigh_nothing_are_left_out(model, folder, streams_of):
    """Without being encoded: a stream that weighs nothing would double the work of a step."""
    (first,) = streams_of(model, folder, prior_loss_weight=0)
    assert first.name == "instance"
    config = DreamboothConfig(**conf_values("train_dreambooth", instance_prompt="asuka", clip_skip=0, prior_loss_weight=0))
    assert prompts_of(config, instance()[0], read_class_images(folder)) == ["asuka"]


def test_an_image_that_does_not_say_its_prompt_is_named(folder):
    Image.new("RGB", (8, 8)).save(folder / "9.png")
    with pytest.raises(ValueError, match=r"9\.png: does not say with which prompt it was made: run class_images again"):
        read_class_images(folder)
