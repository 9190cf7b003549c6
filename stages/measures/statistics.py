"""Estimates with intervals, tests, and their correction for there being many.

Everything is over independent units: the values of one prompt, or of one training, made one number before. Student's t (1908)
holds its level at the few units that there are; a percentile bootstrap over five is too narrow (84 instead of 95 %). No scipy:
diffusers and transformers import it wherever it is installed, at two seconds a process.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from mpmath import betainc, erfinv, findroot
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
POWER = 0.8
EXACT_SIGN_FLIPS = 14
"""Units up to which all sign-flips are gone through; of more, `SAMPLED_SIGN_FLIPS` are drawn."""
SAMPLED_SIGN_FLIPS = 20_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval, and the test of its being 0.

    Attributes:
        mean: the estimate.
        low: the lower bound; None where one unit gives no interval.
        high: the upper bound.
        units: how many independent values it rests on.
        p: of Student's t test, two-sided; None without an interval.
        sign_flip_p: of the sign-flip test (Fisher 1935), which takes no distribution for given; None where it is not made.
        error: the standard error; None without an interval.
        degrees: of freedom; None without an interval.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    units: int = 1
    p: float | None = None
    sign_flip_p: float | None = None
    error: float | None = None
    degrees: float | None = None

    @property
    def detectable(self) -> float | None:
        """The true difference from 0 that so many units would show in `POWER` of all repetitions; None without an interval."""
        if self.error is None or self.degrees is None:
            return None
        return (student_quantile(CONFIDENCE, self.degrees) + student_quantile(2 * POWER - 1, self.degrees)) * self.error

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is above or below zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)


def mean_of(values: ArrayLike) -> Interval:
    """The mean of independent values, (N,): Student's one-sample t interval and test, and the sign-flip test."""
    sample = np.asarray(values, dtype=float)
    mean, count = float(sample.mean()), len(sample)
    if count < 2:
        return Interval(mean, units=count)
    error = float(sample.std(ddof=1)) / math.sqrt(count)
    return _interval(mean, error, count - 1, count, sign_flip_p(sample))


def difference_of(first: ArrayLike, second: ArrayLike) -> Interval:
    """The mean of independent values, (N,), minus that of others, (M,): Welch's t interval and test (1947)."""
    one, other = (np.asarray(values, dtype=float) for values in (first, second))
    mean, count = float(one.mean() - other.mean()), len(one) + len(other)
    if min(len(one), len(other)) < 2:
        return Interval(mean, units=count)
    parts = [float(sample.var(ddof=1)) / len(sample) for sample in (one, other)]
    degrees = [len(sample) - 1 for sample in (one, other)]
    error = math.sqrt(sum(parts))
    spread = sum(part**2 / free for part, free in zip(parts, degrees, strict=True))
    return _interval(mean, error, sum(parts) ** 2 / spread if spread else sum(degrees), count, None)


def slopes(x: Sequence[float], values: ArrayLike) -> NDArray[np.float64]:
    """The least-squares slope over x, (K,), of each row of values, (N, K)."""
    centred = np.asarray(x, dtype=float) - np.mean(x)
    return np.asarray(values, dtype=float) @ centred / (centred @ centred)


def _interval(mean: float, error: float, degrees: float, units: int, flipped: float | None) -> Interval:
    if not (math.isfinite(mean) and math.isfinite(error)):
        raise ValueError(f"a mean of {mean} with the standard error {error}: some of the values are no finite numbers")
    reach = student_quantile(CONFIDENCE, degrees)
    p = student_p(mean / error, degrees) if error else float(not mean)
    return Interval(mean, mean - reach * error, mean + reach * error, units, p, flipped, error, degrees)


def student_p(t: float, degrees: float) -> float:
    """The chance that Student's t is at least as far from 0 as `t`."""
    return float(betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True))


def normal_quantile(inside: float) -> float:
    """The z between whose negative and itself the normal distribution lies with the probability `inside`."""
    return math.sqrt(2) * float(erfinv(inside))


@lru_cache(maxsize=4096)
def student_quantile(inside: float, degrees: float) -> float:
    """The t between whose negative and itself Student's distribution lies with the probability `inside`."""
    scale = 2 * math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi * degrees)

    def slope(t: float) -> float:
        return -scale * float(1 + t * t / degrees) ** (-(degrees + 1) / 2)

    # The normal distribution's is less, and the chance beyond t is convex: from there Newton's method never goes too far.
    nearest = normal_quantile(inside)
    return float(
        findroot(lambda t: student_p(t, degrees) - (1 - inside), nearest, solver="newton", df=slope, maxsteps=100, verify=False)
    )


def sign_flip_p(values: ArrayLike) -> float:
    """The chance that the mean is so far from 0 if each value might as well have the other sign (Fisher 1935), two-sided.

    Of N values, all 2^N ways are gone through up to N = 14; of more, 20,000 are drawn from a fixed seed.
    """
    sample = np.asarray(values, dtype=float)
    if len(sample) <= EXACT_SIGN_FLIPS:
        return float(np.mean(np.abs(_all_signs(len(sample)) @ sample) >= abs(sample.sum()) * (1 - 1e-12)))
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(SAMPLED_SIGN_FLIPS, len(sample)))
    reached = int(np.sum(np.abs(signs @ sample) >= abs(sample.sum()) * (1 - 1e-12)))
    return (reached + 1) / (SAMPLED_SIGN_FLIPS + 1)


@lru_cache(maxsize=EXACT_SIGN_FLIPS + 1)
def _all_signs(count: int) -> NDArray[np.float64]:
    """All ways to give so many values a sign, (2^N, N)."""
    return np.array(list(product((1, -1), repeat=count)), dtype=float)


def holm(p_values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """p-values so adjusted that all false verdicts together are as rare as one would be: Holm's weighted procedure.

    Holm 1979 (Scandinavian Journal of Statistics 6, section 3). A weight says which share of the level a test begins with;
    what is rejected gives its share to the others.

    Args:
        p_values: of N tests, whatever their dependence.
        weights: of the tests, above 0.

    Returns:
        adjusted: N values; the verdict at level a is whether one is at most a.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index] / weights[index])
    adjusted, highest, left = [1.0] * len(p_values), 0.0, math.fsum(weights)
    for index in order:
        highest = max(highest, min(1.0, p_values[index] / weights[index] * left))
        adjusted[index] = highest
        left -= weights[index]
    return adjusted


def area_under_curve(positives: ArrayLike, negatives: ArrayLike) -> Interval:
    """The chance that a positive has a higher value than a negative, ties counted half: the area under the ROC curve.

    The interval is Newcombe's (2006, Statistics in Medicine 25, method 5): the values of the true area that Hanley and McNeil's
    (1982) variance at that value allows. So it has a width where all positives are above all negatives, too.
    """
    one, other = np.asarray(positives, dtype=float)[:, None], np.asarray(negatives, dtype=float)[None, :]
    found = float((one > other).mean() + (one == other).mean() / 2)
    positive_count, negative_count = one.size, other.size
    reach = normal_quantile(CONFIDENCE)

    def beyond(area: float) -> float:
        mean = (positive_count + negative_count) / 2 - 1
        spread = 1 + mean * (1 - area) / (2 - area) + mean * area / (1 + area)
        return abs(found - area) - reach * math.sqrt(area * (1 - area) * spread / (positive_count * negative_count))

    low, high = (_boundary(beyond, found, end) for end in (0.0, 1.0))
    return Interval(found, low, high, positive_count + negative_count)


def _boundary(beyond: Callable[[float], float], inside: float, end: float) -> float:
    """Between a value that is inside an interval and the end of the scale, where it ends; by halving."""
    if beyond(end) <= 0:
        return end
    outside = end
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if beyond(middle) > 0 else (middle, outside)
    return inside
