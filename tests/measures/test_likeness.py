import math

import numpy as np
import pytest

from stages.measures.likeness import (
    among_themselves,
    copied,
    diversity,
    drift,
    mmd_test,
    nearest,
    other_prompt_similarity,
    polynomial_kernel,
    prompt_similarity,
    reference_similarity,
    unbiased_mmd,
)

X, Y, Z = np.eye(3, dtype=np.float32)
HALFWAY = (X + Y) / math.sqrt(2)


def scattered(count: int, seed: int, towards: float = 0.0, width: int = 6) -> np.ndarray:
    """Random embeddings of length 1; the first axis is the likelier the larger `towards` is."""
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    rows[:, 0] += towards
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def halves(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def test_reference_similarity_is_the_mean_cosine():
    references = np.stack([X, Y])
    assert reference_similarity(np.stack([X, HALFWAY, Z]), references) == pytest.approx([0.5, math.sqrt(0.5), 0.0])


def test_a_reference_is_not_compared_with_itself():
    assert among_themselves(np.stack([X, X, Y])) == pytest.approx([0.5, 0.5, 0.0])


def test_prompt_similarity_is_that_of_the_own_prompt():
    images = np.stack([[X, HALFWAY], [X, Y]])
    texts = np.stack([X, Y])
    assert prompt_similarity(images, texts) == pytest.approx(np.array([[1, math.sqrt(0.5)], [0, 1]]))
    assert other_prompt_similarity(images, texts) == pytest.approx(np.array([[0, math.sqrt(0.5)], [1, 0]]))


def test_the_floor_is_the_mean_over_all_other_prompts():
    images, texts = np.stack([[X], [Y], [Z]]), np.stack([X, X, HALFWAY])
    assert other_prompt_similarity(images, texts).ravel() == pytest.approx([(1 + math.sqrt(0.5)) / 2, math.sqrt(0.5) / 2, 0.0])


def test_drift_is_from_the_image_of_the_same_prompt_and_seed():
    images, before = np.stack([[X, Y]]), np.stack([[X, HALFWAY]])
    assert drift(images, before) == pytest.approx(np.array([[0, 1 - math.sqrt(0.5)]]))


def test_diversity_is_over_pairs_of_seeds():
    """Three seeds, of which two are the same picture: one pair of three is alike."""
    assert diversity(np.stack([[X, X, Y], [X, X, X]])) == pytest.approx([2 / 3, 0])


def test_diversity_does_not_depend_on_how_many_seeds_there_are():
    """Of pictures that are drawn independently, the mean over pairs is without bias at any number of them."""
    many = scattered(30_000, 0, towards=1.0)
    few, more = diversity(many.reshape(-1, 2, 6)).mean(), diversity(many.reshape(-1, 6, 6)).mean()
    error = diversity(many.reshape(-1, 2, 6)).std() / math.sqrt(15_000)
    assert abs(few - more) < 4 * error


def test_nearest_says_which():
    similarity, which = nearest(np.stack([[Y, HALFWAY]]), np.stack([X, Y, Z]))
    assert similarity == pytest.approx(np.array([[1, math.sqrt(0.5)]]))
    assert which[0, 0] == 1


def test_planted_copies_are_called_copies_and_few_new_images_are():
    """Over many datasets: at most one in twenty images like the training images, but not of them, is taken for a copy."""
    alarms = []
    for seed in range(200):
        images = scattered(120, seed, towards=1.0)
        training, new = images[:100], images[100:]
        alarms.append(float(copied(new, training).mean()))
        assert copied(training, training).all()
    error = np.std(alarms) / math.sqrt(len(alarms))
    assert np.mean(alarms) <= 0.05 + 2 * error
    assert np.mean(alarms) > 0.02


def test_training_images_that_are_nearly_the_same_make_no_more_false_alarms():
    """Each drawing twice, with a trace between the two: a new one is not near for that."""
    alarms = []
    for seed in range(200):
        once = scattered(70, seed, towards=1.0)
        twice = once + np.random.default_rng(seed).normal(scale=0.01, size=once.shape).astype(np.float32)
        twice /= np.linalg.norm(twice, axis=1, keepdims=True)
        rows = np.random.default_rng(seed).permutation(np.concatenate([once, twice]))
        alarms.append(float(copied(rows[100:], rows[:100]).mean()))
    error = np.std(alarms) / math.sqrt(len(alarms))
    assert np.mean(alarms) <= 0.05 + 2 * error


def test_of_few_training_images_nothing_is_called_a_copy():
    few, enough = scattered(38, 0), scattered(39, 0)
    assert not copied(few, few).any()
    assert copied(enough, enough).all()


def test_mmd_is_that_of_all_pairs():
    """Against a second way to compute it: sums over pairs, written out."""
    one, other = scattered(5, 1), scattered(4, 2)
    kernel = [[(1 + float(a @ b)) ** 3 for b in (*one, *other)] for a in (*one, *other)]
    within = sum(kernel[i][j] for i in range(5) for j in range(5) if i != j) / 20
    beside = sum(kernel[i][j] for i in range(5, 9) for j in range(5, 9) if i != j) / 12
    across = sum(kernel[i][j] for i in range(5) for j in range(5, 9)) / 20
    assert unbiased_mmd(one, other) == pytest.approx(within + beside - 2 * across)
    assert polynomial_kernel(one, other)[0, 0] == pytest.approx((1 + float(one[0] @ other[0])) ** 3)


def test_mmd_of_ten_images_of_one_kind_is_zero_on_average():
    found = [unbiased_mmd(*halves(scattered(20, seed))) for seed in range(2000)]
    assert abs(np.mean(found)) < 2 * np.std(found) / math.sqrt(len(found))


def test_permutations_tell_kinds_apart_and_leave_one_kind_alone():
    assert mmd_test(scattered(20, 0, towards=3.0), scattered(20, 1), 200)[1] < 0.01
    alike = [mmd_test(*halves(scattered(24, seed)), 100)[1] for seed in range(200)]
    false = np.mean([p <= 0.05 for p in alike])
    assert false <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)
