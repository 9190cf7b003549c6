"""What masks and repeats make of encoded images, by hand."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from stages.encoding.encoded_files import EncodedImages
from stages.lora.batches import Batch, Draws, Stream, batch_at, held_out_batches, join, make_batch, tensors_of
from stages.lora.estimates import describe_masks
from stages.lora.examples import Examples, examples_of, pixel_weights, split_held_out
from tests.lora.settings import noise_config

DRAWS = Draws(seed=0, num_train_timesteps=1000, random_flip=False, config=noise_config())


def encoded(masks=None, shapes=None, **changes) -> EncodedImages:
    count = 3
    mean = torch.arange(count).float().view(-1, 1, 1, 1, 1).expand(-1, 2, 4, 2, 2)
    mean = mean if shapes is None else mean.flatten(3)
    names = [f"{number}.png" for number in range(count)]
    return EncodedImages(names, mean, torch.zeros_like(mean), 1.0, 16, shapes, masks=masks, **changes)


def masked(*rows) -> torch.Tensor:
    return torch.tensor(rows).view(3, 2, 2)


HALF, QUARTER, FULL = [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0] * 4


def described(images: EncodedImages, unmasked_weight: float, choices=None) -> Examples:
    prompts = torch.arange(3).float().view(-1, 1, 1) if choices is None else torch.arange(50).float().view(-1, 1, 1)
    return examples_of(images, prompts, torch.zeros(1, 1), unmasked_weight, choices)


def test_the_weights_of_an_image_have_the_mean_one_whatever_its_mask_covers():
    weights = pixel_weights(encoded(masked(HALF, QUARTER, FULL)), 0.0)
    assert weights is not None
    assert weights.view(3, 4).tolist() == [[2.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 4.0], [1.0] * 4]
    weights = pixel_weights(encoded(masked(HALF, QUARTER, FULL)), 0.5)
    assert weights is not None
    torch.testing.assert_close(weights[0].flatten(), torch.tensor([4 / 3, 2 / 3, 4 / 3, 2 / 3]))
    torch.testing.assert_close(weights[1].flatten(), torch.tensor([0.8, 0.8, 0.8, 1.6]))


def test_of_several_shapes_padding_counts_nothing():
    shapes = torch.tensor([[2, 2], [1, 2], [1, 1]])
    weights = pixel_weights(encoded(torch.tensor([HALF, [1.0, 0, 0, 0], [1.0, 0, 0, 0]]), shapes), 0.5)
    assert weights is not None
    torch.testing.assert_close(weights[1], torch.tensor([4 / 3, 2 / 3, 0.0, 0.0]))
    assert weights[2].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_without_masks_or_with_a_weight_of_one_all_count_alike():
    assert pixel_weights(encoded(), 0.1) is None
    assert pixel_weights(encoded(masked(HALF, QUARTER, FULL)), 1.0) is None


def test_an_image_of_which_nothing_counts_is_named():
    with pytest.raises(ValueError, match=r"unmasked_weight: given 0: of 1\.png the mask leaves nothing"):
        pixel_weights(encoded(masked(HALF, [0.0] * 4, FULL)), 0.0)
    assert pixel_weights(encoded(masked(HALF, [0.0] * 4, FULL)), 0.1) is not None


def test_the_mask_is_mirrored_with_its_image():
    examples = described(encoded(masked(HALF, QUARTER, FULL)), 0.0)
    plain, mirrored = (examples.weights_of_pixels(1, side) for side in (0, 1))
    assert plain is not None
    assert mirrored is not None
    assert (plain.flatten().tolist(), mirrored.flatten().tolist()) == ([0.0, 0.0, 0.0, 4.0], [0.0, 0.0, 4.0, 0.0])


def test_a_batch_has_the_weights_of_its_images_and_class_images_count_whole():
    stream = Stream("instance", described(encoded(masked(HALF, QUARTER, FULL)), 0.0))
    batch = make_batch(stream, range(3), DRAWS)
    assert batch.pixel_weights is not None
    assert batch.pixel_weights.shape == (3, 1, 2, 2)
    for number, weights in zip(batch.latents[:, 0, 0, 0].int().tolist(), batch.pixel_weights, strict=True):
        assert weights.flatten().tolist() == [[2.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 4.0], [1.0] * 4][number]
    both = join([batch, make_batch(Stream("class", described(encoded(), 0.0)), range(2), DRAWS)])
    assert isinstance(both, Batch)
    assert both.pixel_weights is not None
    assert torch.equal(both.pixel_weights[3:], torch.ones(2, 1, 2, 2))
    assert len(tensors_of(both)) == 6


def test_without_masks_a_batch_has_no_weights_of_pixels():
    assert make_batch(Stream("instance", described(encoded(), 0.1)), range(3), DRAWS).pixel_weights is None


def shown(stream: Stream, batches: int) -> list[int]:
    return [int(each) for number in range(batches) for each in batch_at([stream], DRAWS, 2, number).latents[:, 0, 0, 0]]


@pytest.mark.parametrize("mixed", [False, True], ids=["one shape", "several shapes"])
def test_an_epoch_shows_each_image_as_often_as_it_is_repeated(mixed):
    shapes = torch.tensor([[2, 2], [1, 2], [2, 2]]) if mixed else None
    examples = described(encoded(shapes=shapes, repeats=[3, 1, 2]), 1.0)
    assert examples.shown == 6
    times = Counter(shown(Stream("instance", examples), 6))
    assert times == {0: 6, 1: 2, 2: 4}


def test_each_showing_of_a_repeated_image_has_a_text_of_its_own():
    choices = torch.stack([torch.full((3,), row) for row in range(12)])
    stream = Stream("instance", described(encoded(repeats=[3, 1, 2]), 1.0, choices))
    seen: dict[int, list[int]] = {}
    for number in range(6):
        batch = batch_at([stream], DRAWS, 2, number)
        for image, text in zip(batch.latents[:, 0, 0, 0].tolist(), batch.encoder_hidden_states.flatten().tolist(), strict=True):
            seen.setdefault(int(image), []).append(int(text))
    assert {image: sorted(texts) for image, texts in seen.items()} == {0: [0, 1, 2, 3, 4, 5], 1: [0, 1], 2: [0, 1, 2, 3]}


def test_repeats_of_one_change_nothing():
    plain, repeated = (described(encoded(repeats=repeats), 1.0) for repeats in ((), (1, 1, 1)))
    for one, other in zip(
        *(tensors_of(batch_at([Stream("instance", each)], DRAWS, 2, 5)) for each in (plain, repeated)), strict=True
    ):
        assert torch.equal(one, other)


def test_held_out_images_are_looked_at_once_each_and_under_their_masks():
    examples = described(encoded(masked(HALF, QUARTER, FULL), repeats=[3, 1, 2]), 0.0)
    kept, held_out = split_held_out(examples, ["0.png"])
    assert (kept.repeats, kept.file_names) == ((1, 2), ("1.png", "2.png"))
    assert held_out is not None
    batches = held_out_batches(held_out, DRAWS, 8)
    assert [len(batch.weights) for batch in batches] == [4]
    assert batches[0].pixel_weights is not None
    assert batches[0].pixel_weights[0].flatten().tolist() == [2.0, 0.0, 2.0, 0.0]


def test_the_plan_shows_a_mask():
    said = describe_masks(described(encoded(masked(FULL, QUARTER, HALF)), 0.1), 0.1)
    assert said == "masks: of 2 of 3 images, 58% of the area of all; the rest counts 0.1 times as much; 1.png:\n      \n    ##"
    assert "the rest does not count" in describe_masks(described(encoded(masked(FULL, QUARTER, HALF)), 0.0), 0.0)
    assert describe_masks(described(encoded(), 0.1), 0.1) == ""
    assert describe_masks(described(encoded(masked(FULL, FULL, FULL)), 0.1), 0.1) == ""


def test_a_large_mask_is_shown_small():
    right_half = torch.cat([torch.zeros(3, 64, 32), torch.full((3, 64, 32), 2.0)], dim=2)
    _, *rows = describe_masks(replace(described(encoded(), 1.0), pixel_weights=right_half), 0.0).splitlines()
    assert len(rows) == 16
    assert set(rows) == {"  " + 24 * " " + 24 * "#"}
