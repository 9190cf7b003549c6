"""Merge methods: one small function each, with its source.

theta0, theta1 and theta2 are float32 arrays of one shape, and alpha is the weight of theta1. Other tools take alpha as the
weight of theta0, or give each model a weight; see `MergeMethod.formula` for what is computed here.

Large tensors are merged piece by piece, so the arrays may be pieces of tensors. Two methods need a number that depends on the
whole tensors: slerp the angle between them, ties the smallest magnitude that it keeps. A first pass over the pieces measures it
(`MergeMethod.measure`), and the merge of each piece then gets it. Where a model has NaN or Inf, the merge has one too.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np

from stages.checkpoints.files.chunks import Pieces

Array = np.ndarray
Measured = tuple[float, ...]
"""What a method has to know of the whole tensors before it merges pieces of them."""

_FLOATS_OF_A_STEP = 8  # of the Philox generator
_PARALLEL = 0.9995  # cosine from which on an arc is a line: Shoemake's formula divides by the sine of the angle


@dataclass(frozen=True)
class TensorSettings:
    """The settings of a merge for one tensor, or for one piece of it.

    Attributes:
        key: Name of the tensor. Random masks depend on it, and so not on the order in which tensors are merged.
        alpha: Weight of theta1, in [0, 1].
        density: Part of a difference that is kept, in (0, 1]; used by ties and dare.
        seed: Of random masks; used by dare.
        start: Index of the piece's first value in the flattened tensor, a multiple of 8; used by dare.
        measured: What `MergeMethod.measure` gave for the whole tensors; empty for methods without it.
        overwrite: Whether the result may be written into the given arrays, which is faster.
    """

    key: str
    alpha: float
    density: float
    seed: int
    start: int = 0
    measured: Measured = ()
    overwrite: bool = False


@dataclass(frozen=True)
class MergeMethod:
    """One way to merge models.

    Attributes:
        function: Merges arrays: called with those of theta0, theta1 and theta2 (the first `models` of them), then with the
            `TensorSettings`; returns an array of their shape.
        models: How many models are merged: 1 is theta0 alone, 2 adds theta1, 3 adds theta2.
        measure: Finds out what `function` has to know of the whole tensors, called with the settings and with `Pieces` to
            iterate over. None where a value of the merge depends on the models' values at the same index alone.
        formula: What is computed, with alpha's direction.
        source: The publication that the method comes from.
    """

    function: Callable[..., Array]
    models: int
    measure: Callable[[TensorSettings, Pieces], Measured] | None
    formula: str
    source: str


def weighted_sum(theta0: Array, theta1: Array, alpha: float, overwrite: bool = False) -> Array:
    """Interpolate linearly between two models: Wortsman et al. 2021, section 3 (arXiv:2109.01903).

    With `overwrite` the result is written into theta0 and theta1 is spoilt, which is faster: all stays in the core's cache.
    """
    merged = np.multiply(theta0, 1 - alpha, out=theta0 if overwrite else None)
    merged += np.multiply(theta1, alpha, out=theta1 if overwrite else None)
    return merged


def add_difference(theta0: Array, theta1: Array, theta2: Array, alpha: float) -> Array:
    """Add to theta0 what theta1 learnt since theta2: task arithmetic, Ilharco et al. 2022, section 2 (arXiv:2212.04089)."""
    return theta0 + alpha * (theta1 - theta2)


def slerp(theta0: Array, theta1: Array, alpha: float, products: Measured) -> Array:
    """Interpolate along the arc between two tensors, each taken as one long vector: Shoemake 1985, section 3.3.

    The vectors are not normalised: the formula for unit vectors is applied to them with the angle between their directions.
    Where the angle is undefined or the formula would divide by nearly 0 (a vector is zero, or they are parallel or opposite),
    the result is the weighted sum.

    Args:
        theta0: The first model's values, or a piece of them.
        theta1: The second's.
        alpha: Weight of theta1, in [0, 1].
        products: What `dot_products` gives for the whole tensors.
    """
    square0, square1, product = products
    length = np.sqrt(square0 * square1)
    cosine = product / length if length else 1.0
    if abs(cosine) > _PARALLEL:
        return weighted_sum(theta0, theta1, alpha)
    angle = np.arccos(cosine)
    weights = np.sin([(1 - alpha) * angle, alpha * angle]) / np.sin(angle)
    return np.float32(weights[0]) * theta0 + np.float32(weights[1]) * theta1


def dot_products(pieces: Iterable[tuple[Array, ...]]) -> tuple[float, ...]:
    """The dot products theta0 · theta0, theta1 · theta1 and theta0 · theta1, summed over the pieces of the tensors."""
    pairs = ((0, 0), (1, 1), (0, 1))
    return tuple(np.sum([[_dot(thetas[i], thetas[j]) for i, j in pairs] for thetas in pieces], axis=0).tolist())


def ties(theta0: Array, theta1: Array, theta2: Array, alpha: float, smallest: Measured) -> Array:
    """Merge what two models learnt since theta2, where they do not contradict: Yadav et al. 2023, section 4 (arXiv:2306.01708).

    The differences theta0 - theta2 and theta1 - theta2 have the weights 1 - alpha and alpha. Trim: in each, small values are
    set to 0. Elect: each value of the result gets the sign of their weighted sum. Disjoint merge: the weighted mean of those
    with that sign (the paper's mean where alpha is 0.5) is added to theta2 (the paper's lambda is 1).

    Args:
        theta0: The first model's values, or a piece of them.
        theta1: The second's.
        theta2: Those of the model that differences are measured from.
        alpha: Weight of theta1, in [0, 1].
        smallest: What `smallest_kept` gives for the whole tensors.
    """
    differences = [trim(theta - theta2, least) for theta, least in zip((theta0, theta1), smallest, strict=True)]
    weights = [np.float32(1 - alpha), np.float32(alpha)]
    elected = np.sign(weights[0] * differences[0] + weights[1] * differences[1])
    total, weight = np.zeros_like(theta2), np.zeros_like(theta2)
    for share, difference in zip(weights, differences, strict=True):
        agrees = np.sign(difference) == elected
        agrees &= difference != 0
        total += agrees * (share * difference)
        weight += share * agrees
    return theta2 + np.divide(total, weight, out=total, where=weight > 0)


def smallest_kept(pieces: Pieces, density: float) -> tuple[float, ...]:
    """The magnitudes from which on ties keeps a value of theta0 - theta2 and of theta1 - theta2.

    Values of that magnitude or a larger one are the part `density` of the whole difference. To find it, all magnitudes of one
    difference are held in memory, which is why ties takes more of it than the other methods.
    """
    return (0.0, 0.0) if density == 1 else tuple(_smallest_kept(pieces, index, density) for index in (0, 1))


def _smallest_kept(pieces: Pieces, index: int, density: float) -> float:
    held = bytearray()  # grows in place: a list of pieces would have to be joined, which takes the memory twice
    for thetas in pieces():
        held += np.abs(thetas[index] - thetas[2]).tobytes()
    magnitudes = np.frombuffer(held, np.float32)
    dropped = len(magnitudes) - ceil(density * len(magnitudes))
    magnitudes.partition(dropped)
    return float(magnitudes[dropped])


def trim(difference: Array, smallest: float) -> Array:
    """Set all magnitudes below `smallest` to zero; what is equal to it is kept."""
    return difference * (np.abs(difference) >= smallest)


def dare(theta0: Array, theta1: Array, theta2: Array, settings: TensorSettings) -> Array:
    """Drop most of what each model learnt since theta2, at random, and rescale the rest: Yu et al. 2023 (arXiv:2311.03099).

    Each value of the differences theta0 - theta2 and theta1 - theta2 is kept with the probability `density` (the paper's 1 - p,
    section 3.2) and divided by it, or else set to 0. They are added to theta2 with the weights 1 - alpha and alpha.
    """
    merged = theta2.copy()
    for index, (share, theta) in enumerate(((1 - settings.alpha, theta0), (settings.alpha, theta1))):
        kept = keep_mask(theta2.shape, settings, index)
        merged += np.float32(share / settings.density) * (kept * (theta - theta2))
    return merged


def keep_mask(shape: tuple[int, ...], settings: TensorSettings, index: int) -> Array:
    """Which values of model `index` are kept, at random, but the same on every machine and in any order of tensors."""
    words = hashlib.sha256(f"{settings.seed} {settings.key} {index}".encode()).digest()
    numbers = np.random.Philox(key=int.from_bytes(words[:16], "little")).advance(settings.start // _FLOATS_OF_A_STEP)
    return np.random.Generator(numbers).random(shape, np.float32) < settings.density


def _dot(left: Array, right: Array) -> float:
    """The dot product in float64, summed in a fixed order; the order of BLAS depends on its number of threads."""
    return float(np.einsum("i,i->", left.reshape(-1), right.reshape(-1), dtype=np.float64, casting="unsafe"))


MERGE_METHODS: Mapping[str, MergeMethod] = {
    "weighted_sum": MergeMethod(
        lambda theta0, theta1, settings: weighted_sum(theta0, theta1, settings.alpha, settings.overwrite),
        models=2,
        measure=None,
        formula="theta = (1 - alpha) * theta0 + alpha * theta1",
        source="Wortsman et al. 2021, arXiv:2109.01903, section 3",
    ),
    "add_difference": MergeMethod(
        lambda theta0, theta1, theta2, settings: add_difference(theta0, theta1, theta2, settings.alpha),
        models=3,
        measure=None,
        formula="theta = theta0 + alpha * (theta1 - theta2)",
        source="Ilharco et al. 2022, arXiv:2212.04089, section 2",
    ),
    "slerp": MergeMethod(
        lambda theta0, theta1, settings: slerp(theta0, theta1, settings.alpha, settings.measured),
        models=2,
        measure=lambda settings, pieces: dot_products(pieces()),
        formula="theta = (sin((1 - alpha) * angle) * theta0 + sin(alpha * angle) * theta1) / sin(angle), tensor by tensor",
        source="Shoemake 1985, Animating rotation with quaternion curves, doi:10.1145/325334.325242, section 3.3",
    ),
    "ties": MergeMethod(
        lambda theta0, theta1, theta2, settings: ties(theta0, theta1, theta2, settings.alpha, settings.measured),
        models=3,
        measure=lambda settings, pieces: smallest_kept(pieces, settings.density),
        formula="theta = theta2 + TIES of theta0 - theta2 (weight 1 - alpha) and theta1 - theta2 (weight alpha)",
        source="Yadav et al. 2023, arXiv:2306.01708, section 4",
    ),
    "dare": MergeMethod(
        dare,
        models=3,
        measure=None,
        formula="theta = theta2 + (1 - alpha) * DARE(theta0 - theta2) + alpha * DARE(theta1 - theta2)",
        source="Yu et al. 2023, arXiv:2311.03099, section 3.2",
    ),
    "passthrough": MergeMethod(
        lambda theta0, settings: theta0,
        models=1,
        measure=None,
        formula="theta = theta0",
        source="no merge: theta0 as it is",
    ),
}
