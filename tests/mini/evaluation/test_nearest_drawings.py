import numpy as np
import pytest
import torch

from stages.mini.drawings.labelled import LABELS, NOT_SHOWN, Labelled
from stages.mini.evaluation.nearest_drawings import embed, neighbours_alike, told_apart
from stages.mini.training.train_dino import build


@pytest.fixture(scope="module")
def dino():
    torch.manual_seed(0)
    return build(1).eval()


def patterns(count):
    """Pictures of coloured squares, no two alike."""
    small = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.parametrize(
    ("positives", "negatives", "chance"),
    [
        ([3, 4], [1, 2], 1),
        ([1], [2, 3], 0),
        ([1, 2], [1, 2], 0.5),  # two ties, one higher, one lower
        ([2, 5], [1, 5, 7, 0], 0.5625),  # of eight pairs four are higher, and one is a tie
        ([0.1], [0.1], 0.5),
    ],
)
def test_a_positive_is_told_from_a_negative_by_the_share_of_pairs_in_which_it_is_higher(positives, negatives, chance):
    assert told_apart(positives, negatives) == chance
    assert told_apart(np.array(negatives), np.array(positives)) == 1 - chance


def test_of_one_kind_alone_nothing_is_told():
    for positives, negatives in (([], [1.0]), ([1.0], [])):
        with pytest.raises(ValueError, match="of one kind there is no drawing"):
            told_apart(positives, negatives)


def test_embeddings_have_length_one_whatever_batch_they_are_in(dino):
    images = patterns(70)
    embeddings = embed(dino, images)
    assert embeddings.shape == (70, dino.config.hidden_size)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embeddings[66:], embed(dino, images[66:]), atol=1e-5)


def test_a_drawing_is_compared_with_its_nearest_other_in_what_it_shows(dino):
    """Of eight drawings each has a twin, which is nearest whatever the encoder."""
    labels = np.zeros((8, len(LABELS)), np.int8)
    places = {name: tuple(LABELS).index(name) for name in LABELS}
    labels[:, places["hair"]] = [0, 0, 1, 1, 2, 2, 0, 1]  # the last two twins differ
    labels[:, places["glasses"]] = [0, 1, 0, 1, 0, 1, 1, 0]  # no twins agree
    labels[:, places["clothes"]] = [0, 0, 1, 1, 1, NOT_SHOWN, NOT_SHOWN, NOT_SHOWN]  # the fifth shows it, and its twin does not
    twins = Labelled(patterns(4).repeat(2, axis=0), labels)
    shares = neighbours_alike(dino, twins)
    assert set(shares) == set(LABELS)
    assert (shares["style"], shares["hair"], shares["glasses"], shares["clothes"]) == (1.0, 0.75, 0.0, 0.8)
    labels[:, places["clothes"]] = NOT_SHOWN
    assert set(neighbours_alike(dino, Labelled(twins.images, labels))) == set(LABELS) - {"clothes"}
