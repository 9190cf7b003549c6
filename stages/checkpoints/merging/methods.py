"""Merge methods: each one is a small function over tensors in its own right, with its source.

theta0, theta1 and theta2 are float32 tensors of one shape, and alpha is the weight of theta1. Other tools count it from the
other end, or give each model a weight; see `MergeMethod.formula` for what is computed here.

Each works on pieces of tensors too. What slerp and ties must know of the whole ones, the angle and which values are the
largest, is measured before; without it, they measure what they are given. Where a model is not finite, neither is the merge.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np

from stages.checkpoints.files.chunks import Pieces

Array = np.ndarray
Measured = tuple[float, ...] | None

_FLOATS_OF_A_STEP = 8  # of the Philox generator
_PARALLEL = 0.9995  # cosine from which on an arc is a line: Shoemake's formula divides by the sine of the angle


@dataclass(frozen=True)
class Setting:
    """What a method needs to know beside the tensors.

    Attributes:
        key: Name of the tensor; random masks depend on it, so that they do not depend on the order of the tensors.
        alpha: Weight of theta1, in [0, 1].
        density: Part of a difference that is kept, in (0, 1]; used by ties and dare.
        seed: Of random masks; used by dare.
        start: Place of the first value in the whole tensor, a multiple of 8; used by dare.
        measured: What `MergeMethod.measure` found in the whole tensors; None: the tensors that are given are whole.
        overwrite: Whether the memory of the tensors may be used, which is quicker.
    """

    key: str
    alpha: float
    density: float
    seed: int
    start: int = 0
    measured: Measured = None
    overwrite: bool = False


@dataclass(frozen=True)
class MergeMethod:
    """One way to make a model of others.

    Attributes:
        function: Of the tensors of all `models` and a setting.
        models: How many models it is made of: theta0, then theta1, then theta2.
        measure: Of a setting and of the whole tensors, which it goes through in pieces; None where each value of the merge
            depends on the same value of the models alone.
        formula: What is computed, with alpha's direction.
        source: Where the method comes from.
    """

    function: Callable[..., Array]
    models: int
    measure: Callable[[Setting, Pieces], Measured] | None
    formula: str
    source: str


def weighted_sum(theta0: Array, theta1: Array, alpha: float, overwrite: bool = False) -> Array:
    """Interpolate linearly between two models: Wortsman et al. 2021, section 3 (arXiv:2109.01903).

    With `overwrite`, in the memory of the two tensors, which is quicker: all of it stays in the cache.
    """
    merged = np.multiply(theta0, 1 - alpha, out=theta0 if overwrite else None)
    merged += np.multiply(theta1, alpha, out=theta1 if overwrite else None)
    return merged


def add_difference(theta0: Array, theta1: Array, theta2: Array, alpha: float) -> Array:
    """Add to theta0 what theta1 learnt since theta2: task arithmetic, Ilharco et al. 2022, section 2 (arXiv:2212.04089)."""
    return theta0 + alpha * (theta1 - theta2)


def slerp(theta0: Array, theta1: Array, alpha: float, products: Measured = None) -> Array:
    """Interpolate along the arc between two tensors, each seen as one vector: Shoemake 1985, section 3.3.

    The angle is that between their directions; the lengths are those that the formula gives. Where there is no arc (one is
    zero, or they point the same or the opposite way) it is the straight line. `products` are those of `dot_products`.
    """
    square0, square1, product = products or dot_products([(theta0, theta1)])
    length = np.sqrt(square0 * square1)
    cosine = product / length if length else 1.0
    if abs(cosine) > _PARALLEL:
        return weighted_sum(theta0, theta1, alpha)
    angle = np.arccos(cosine)
    weights = np.sin([(1 - alpha) * angle, alpha * angle]) / np.sin(angle)
    return np.float32(weights[0]) * theta0 + np.float32(weights[1]) * theta1


def dot_products(pieces: Iterable[tuple[Array, ...]]) -> tuple[float, ...]:
    """Of theta0 with itself, of theta1 with itself, and of both."""
    pairs = ((0, 0), (1, 1), (0, 1))
    return tuple(np.sum([[_dot(thetas[i], thetas[j]) for i, j in pairs] for thetas in pieces], axis=0).tolist())


def ties(theta0: Array, theta1: Array, theta2: Array, alpha: float, density: float, smallest: Measured = None) -> Array:
    """Merge what two models learnt since theta2, without what contradicts: Yadav et al. 2023, section 4 (arXiv:2306.01708).

    Trim: of each difference, the part `density` with the largest magnitudes is kept. Elect: each value takes the sign of the
    weighted sum, the weights being 1 - alpha and alpha. Disjoint merge: the weighted mean over the models that agree with it
    (the paper's mean where alpha is 0.5), added to theta2 (lambda = 1). `smallest` are those of `smallest_kept`.
    """
    smallest = smallest or smallest_kept(lambda: iter([(theta0, theta1, theta2)]), density)
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
    """The smallest magnitudes that trimming to `density` keeps of theta0 - theta2 and of theta1 - theta2.

    Of one difference at a time, the magnitudes are held in memory: that is what ties takes more than the other methods.
    """
    return (0.0, 0.0) if density == 1 else tuple(_smallest_kept(pieces, index, density) for index in (0, 1))


def _smallest_kept(pieces: Pieces, index: int, density: float) -> float:
    held = bytearray()  # grows in place, so that the magnitudes are never there twice
    for thetas in pieces():
        held += np.abs(thetas[index] - thetas[2]).tobytes()
    magnitudes = np.frombuffer(held, np.float32)
    dropped = len(magnitudes) - ceil(density * len(magnitudes))
    magnitudes.partition(dropped)
    return float(magnitudes[dropped])


def trim(difference: Array, smallest: float) -> Array:
    """Set all magnitudes below `smallest` to zero; what is equal to it is kept."""
    return difference * (np.abs(difference) >= smallest)


def dare(theta0: Array, theta1: Array, theta2: Array, setting: Setting) -> Array:
    """Drop most of what each model learnt since theta2, at random, and rescale the rest: Yu et al. 2023 (arXiv:2311.03099).

    The part `density` of each difference is kept (the paper's 1 - p, section 3.2) and divided by it; what is left is added to
    theta2 with the weights 1 - alpha and alpha.
    """
    merged = theta2.copy()
    for index, (share, theta) in enumerate(((1 - setting.alpha, theta0), (setting.alpha, theta1))):
        kept = keep_mask(theta2.shape, setting, index)
        merged += np.float32(share / setting.density) * (kept * (theta - theta2))
    return merged


def keep_mask(shape: tuple[int, ...], setting: Setting, index: int) -> Array:
    """Which values of model `index` are kept: the same on every machine, and independent of all other tensors."""
    words = hashlib.sha256(f"{setting.seed} {setting.key} {index}".encode()).digest()
    numbers = np.random.Philox(key=int.from_bytes(words[:16], "little")).advance(setting.start // _FLOATS_OF_A_STEP)
    return np.random.Generator(numbers).random(shape, np.float32) < setting.density


def _dot(left: Array, right: Array) -> float:
    """In float64 and in a fixed order, unlike BLAS, whose sums depend on its threads."""
    return float(np.einsum("i,i->", left.reshape(-1), right.reshape(-1), dtype=np.float64, casting="unsafe"))


MERGE_METHODS: Mapping[str, MergeMethod] = {
    "weighted_sum": MergeMethod(
        lambda theta0, theta1, setting: weighted_sum(theta0, theta1, setting.alpha, setting.overwrite),
        models=2,
        measure=None,
        formula="theta = (1 - alpha) * theta0 + alpha * theta1",
        source="Wortsman et al. 2021, arXiv:2109.01903, section 3",
    ),
    "add_difference": MergeMethod(
        lambda theta0, theta1, theta2, setting: add_difference(theta0, theta1, theta2, setting.alpha),
        models=3,
        measure=None,
        formula="theta = theta0 + alpha * (theta1 - theta2)",
        source="Ilharco et al. 2022, arXiv:2212.04089, section 2",
    ),
    "slerp": MergeMethod(
        lambda theta0, theta1, setting: slerp(theta0, theta1, setting.alpha, setting.measured),
        models=2,
        measure=lambda setting, pieces: dot_products(pieces()),
        formula="theta = (sin((1 - alpha) * angle) * theta0 + sin(alpha * angle) * theta1) / sin(angle), tensor by tensor",
        source="Shoemake 1985, Animating rotation with quaternion curves, doi:10.1145/325334.325242, section 3.3",
    ),
    "ties": MergeMethod(
        lambda theta0, theta1, theta2, setting: ties(theta0, theta1, theta2, setting.alpha, setting.density, setting.measured),
        models=3,
        measure=lambda setting, pieces: smallest_kept(pieces, setting.density),
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
        lambda theta0, setting: theta0,
        models=1,
        measure=None,
        formula="theta = theta0",
        source="no merge: theta0 as it is",
    ),
}
