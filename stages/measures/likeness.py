"""What embeddings say of images: likeness, drift, diversity, copies. All embeddings have length 1; all arrays are NumPy's."""

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
Values = NDArray[np.float64]

COPY_LEVEL = 0.05
"""Share of images like the training images, but not of them, that may be taken for copies."""
ENOUGH_FOR_COPIES = round(2 / COPY_LEVEL) - 1
"""Training images of fewer of which nothing is called a copy: one and its original are two among them, the nearest of all."""
ROUNDING = 1e-6
"""Differences of cosines in float32 that are none."""


def reference_similarity(images: Embeddings, references: Embeddings) -> Values:
    """The mean cosine of each image with all reference images: DreamBooth's subject fidelity.

    Ruiz et al. 2023, section 4.1 (arXiv:2208.12242), CLIP-I or DINO by what embedded them.

    Args:
        images: (..., D).
        references: (M, D).

    Returns:
        similarity: (...) in [-1, 1]; higher is more alike.
    """
    return np.asarray(images, dtype=float) @ np.asarray(references, dtype=float).mean(axis=0)


def among_themselves(references: Embeddings) -> Values:
    """The mean cosine of each reference image with the others, (M,): what a real image of the subject reaches.

    It needs two references at least.
    """
    similarity = np.asarray(references, dtype=float) @ np.asarray(references, dtype=float).T
    return (similarity.sum(axis=1) - np.diag(similarity)) / (len(references) - 1)


def prompt_similarity(images: Embeddings, texts: Embeddings) -> Values:
    """The cosine of each image with its own prompt: CLIP-T (Ruiz et al. 2023, section 4.1).

    Args:
        images: (P, S, D), by prompt and seed.
        texts: (P, D).

    Returns:
        similarity: (P, S) in [-1, 1].
    """
    return np.einsum("psd,pd->ps", np.asarray(images, dtype=float), np.asarray(texts, dtype=float))


def other_prompt_similarity(images: Embeddings, texts: Embeddings) -> Values:
    """The mean cosine of each image with the prompts of the others, (P, S): the floor of `prompt_similarity`.

    It needs two prompts at least.
    """
    own = prompt_similarity(images, texts)
    every = np.asarray(images, dtype=float) @ np.asarray(texts, dtype=float).sum(axis=0)
    return (every - own) / (len(texts) - 1)


def drift(images: Embeddings, before: Embeddings) -> Values:
    """How far each image has moved from another model's of the same prompt and noise: 1 - cosine, in [0, 2].

    Args:
        images: (P, S, D).
        before: (P, S, D), of the model before.
    """
    return 1 - np.einsum("psd,psd->ps", np.asarray(images, dtype=float), np.asarray(before, dtype=float))


def diversity(images: Embeddings) -> Values:
    """How much the images of a prompt differ: the mean of 1 - cosine over all pairs of its seeds.

    Args:
        images: (P, S, D), S at least 2.

    Returns:
        diversity: (P,) in [0, 2].
    """
    seeds = images.shape[1]
    summed = np.asarray(images, dtype=float).sum(axis=1)
    lengths = np.einsum("psd,psd->p", np.asarray(images, dtype=float), np.asarray(images, dtype=float))
    pairs = (np.einsum("pd,pd->p", summed, summed) - lengths) / (seeds * (seeds - 1))
    return 1 - pairs


def nearest(images: Embeddings, training: Embeddings) -> tuple[Values, NDArray[np.intp]]:
    """For each image the cosine with the nearest training image, in [-1, 1], and which one that is.

    Args:
        images: (..., D).
        training: (N, D).
    """
    similarity = np.asarray(images, dtype=float) @ np.asarray(training, dtype=float).T
    return similarity.max(axis=-1), similarity.argmax(axis=-1)


def copied(images: Embeddings, training: Embeddings, level: float = COPY_LEVEL) -> NDArray[np.bool_]:
    """Which images count as copies: so near to a training image as one in twenty new images of the subject would be at most.

    Each image is put among the training images, and its cosine with the nearest other one is held against theirs (full
    conformal prediction: Vovk et al. 2005, section 2.2). If it is like the training images and no copy, it is called one with
    a chance of at most `level`, however few and however alike they are. Where a copy and its original are the nearest of all,
    that takes 2 / level - 1 training images, 39: of fewer, nothing is called a copy.

    Args:
        images: (..., D).
        training: (N, D).
        level: the share of false alarms, in (0, 1).

    Returns:
        copied: (...).
    """
    among = np.asarray(training, dtype=float) @ np.asarray(training, dtype=float).T
    np.fill_diagonal(among, -np.inf)
    similarity = np.asarray(images, dtype=float) @ np.asarray(training, dtype=float).T
    own = similarity.max(axis=-1, keepdims=True)
    as_near = (np.maximum(among.max(axis=1), similarity) >= own - ROUNDING).sum(axis=-1)
    return (as_near + 1) / (len(training) + 1) <= level


def polynomial_kernel(one: Embeddings, other: Embeddings) -> Values:
    """(1 + x·y)^3 for each pair, (N, M): KID's kernel (Bińkowski et al. 2018, arXiv:1801.01401) for vectors of length 1."""
    return (1 + np.asarray(one, dtype=float) @ np.asarray(other, dtype=float).T) ** 3


def unbiased_mmd(one: Embeddings, other: Embeddings) -> float:
    """The squared maximum mean discrepancy of two sets of images, without bias: 0 on average where they are alike.

    Gretton et al. 2012, lemma 6 (JMLR 13). It can be below 0, and takes two images of each at least.
    """
    both = np.concatenate([one, other])
    return float(_mmd(polynomial_kernel(both, both), np.arange(len(both))[None] < len(one))[0])


def mmd_test(one: Embeddings, other: Embeddings, permutations: int = 1000) -> tuple[float, float]:
    """`unbiased_mmd`, and the share of permutations (fixed seed) in which it is as large: the p of their being alike."""
    both = np.concatenate([one, other])
    kernel = polynomial_kernel(both, both)
    first = np.arange(len(both)) < len(one)
    generator = np.random.default_rng(0)
    found, *permuted = _mmd(kernel, np.stack([first, *(generator.permutation(first) for _ in range(permutations))]))
    reached = int(np.sum(np.asarray(permuted) >= found - 1e-12))
    return float(found), (reached + 1) / (permutations + 1)


def _mmd(kernel: Values, first: NDArray[np.bool_]) -> Values:
    """The unbiased estimate for several ways to tell the one set from the other, (R,).

    Args:
        kernel: (N, N), of all pairs of both sets.
        first: (R, N), whether each is of the one set; as many are in each row.
    """
    pairs, chosen = kernel - np.diag(np.diag(kernel)), first.astype(float)
    of_each = chosen @ pairs.sum(axis=1)
    within = np.einsum("rn,rn->r", chosen @ pairs, chosen)
    one, other = (float(part[0].sum()) for part in (first, ~first))
    across, rest = of_each - within, pairs.sum() - 2 * of_each + within
    return within / (one * (one - 1)) + rest / (other * (other - 1)) - 2 * across / (one * other)
