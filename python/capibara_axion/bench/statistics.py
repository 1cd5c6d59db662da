# SPDX-License-Identifier: Apache-2.0
"""Summaries, and intervals that hold for samples taken one after another on a real machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from capibara_axion.bench.results import Summary

Array = npt.NDArray[np.float64]

# Samples that are drawn at once, for memory's sake.
_DRAWN_AT_ONCE = 2_000_000


def summarise(values: Sequence[float]) -> Summary | None:
    """A measure's distribution; None without values. `stdev` of a single one is 0."""
    if not values:
        return None
    ordered = np.sort(np.asarray(values, np.float64))
    median, p95, p99 = np.percentile(ordered, (50, 95, 99))
    low, high = median_interval(ordered) or (None, None)
    return Summary(
        n=len(ordered),
        mean=float(ordered.mean()),
        stdev=float(ordered.std(ddof=1)) if len(ordered) > 1 else 0.0,
        median=float(median),
        p95=float(p95),
        p99=float(p99),
        low=low,
        high=high,
    )


def median_interval(ordered: Array, confidence: float = 0.95) -> tuple[float, float] | None:
    """A confidence interval of the median, whatever the distribution; None: too few samples.

    The k-th smallest and k-th largest value contain it with a probability that the binomial
    distribution gives (Conover, Practical Nonparametric Statistics, section 3.2). Samples count as
    independent.
    """
    n, tail = len(ordered), (1 - confidence) / 2
    if n > 1000:  # the normal approximation; 2 ** -n would underflow soon
        k = math.floor((n - math.sqrt(n) * 1.959964) / 2)
    else:
        k, below, term = 0, 0.0, 0.5**n
        while (below := below + term) <= tail:
            term *= (n - k) / (k + 1)
            k += 1
    return (float(ordered[k - 1]), float(ordered[n - k])) if k else None


def block_length(values: Array) -> int:
    """How many consecutive samples to draw at once, so that their dependence survives.

    The automatic choice of Politis & White (2004, corrected by Patton, Politis & White 2009) for
    the circular block bootstrap, from the autocorrelation of the samples' ranks: those of times
    have tails that would hide it. At least the cube root of their number, since few samples show a
    dependence too late to be detected, and at most a sixth of it.
    """
    n = len(values)
    least = max(1, math.floor(math.pow(n, 1 / 3)))
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # equal ones share their mean rank
    centred = ranks - ranks.mean()
    variance = float(centred @ centred) / n
    if n < 12 or variance == 0:
        return least
    most = min(n - 1, math.ceil(math.sqrt(n)) + 5)
    covariance = np.array([centred[: n - lag] @ centred[lag:] for lag in range(most + 1)]) / n
    # The last lag whose correlation is none that independent samples would show by chance,
    # followed by so many that are.
    quiet = max(5, math.ceil(math.sqrt(math.log10(n))))
    bound = 2 * math.sqrt(math.log10(n) / n) * variance
    loud = [lag for lag in range(1, most + 1) if abs(covariance[lag]) > bound]
    last = 0
    for lag in loud:
        if lag - last > quiet:
            break
        last = lag
    if last == 0:
        return least
    window = min(2 * last, most)
    lags = np.arange(-window, window + 1)
    taper = np.clip(2 * (1 - np.abs(lags) / window), 0, 1)
    weighted = taper * covariance[np.abs(lags)]
    slope, spectrum = float(weighted @ np.abs(lags)), float(weighted.sum())
    if spectrum <= 0:
        return least
    best = math.pow(2 * slope**2 / (4 / 3 * spectrum**2) * n, 1 / 3)
    return max(least, min(math.ceil(best), n // 6))


def bootstrap_medians(
    values: Array, length: int, draws: int, generator: np.random.Generator
) -> Array:
    """Medians of samples drawn anew in blocks of `length`, the last joined to the first.

    The circular block bootstrap of Politis & Romano (1992); with blocks of one sample, that of
    Efron & Tibshirani (An Introduction to the Bootstrap, 1993).
    """
    n = len(values)
    blocks = math.ceil(n / length)
    found = []
    while draws:
        now = min(draws, max(1, _DRAWN_AT_ONCE // n))
        starts = generator.integers(n, size=(now, blocks, 1))
        places = (starts + np.arange(length)).reshape(now, -1)[:, :n] % n
        found.append(np.median(values[places], axis=1))
        draws -= now
    medians: Array = np.concatenate(found)
    return medians


def ratio_of_medians(
    before: Array, after: Array, *, confidence: float, generator: np.random.Generator
) -> tuple[float, float, float] | None:
    """The median of `after` over that of `before`, and its percentile bootstrap interval.

    Not the BCa interval: its acceleration comes from the jackknife, which is not consistent for a
    median (Efron & Tibshirani, section 11.6). The interval is widened as Student's distribution is
    wider than the normal one, with the blocks as degrees of freedom: few blocks know too little of
    how much they vary.

    Args:
        before, after: samples in the order of time, all positive.

    Returns:
        The ratio, its lower and its upper bound; None if there are too few blocks: with b of them
        no interval of a median is surer than 1 - 2 * 2 ** -b.
    """
    tail = (1 - confidence) / 2
    draws = max(2000, math.ceil(10 / tail))
    logarithms, freedom = [], -2.0
    for values in (before, after):
        length = block_length(values)
        blocks = len(values) / length
        if 0.5**blocks > tail:
            return None
        freedom += blocks
        logarithms.append(np.log(bootstrap_medians(values, length, draws, generator)))
    ratio = math.log(np.median(after) / np.median(before))
    low, high = np.quantile(logarithms[1] - logarithms[0], (tail, 1 - tail))
    wider = _student(tail, freedom) / NormalDist().inv_cdf(1 - tail)
    return (
        math.exp(ratio),
        math.exp(ratio + wider * (low - ratio)),
        math.exp(ratio + wider * (high - ratio)),
    )


def ratio_of_rounds(
    ratios: Sequence[float], confidence: float
) -> tuple[float, float, float] | None:
    """The geometric mean of rounds' ratios, and its interval by Student's distribution.

    Returns:
        The ratio, its lower and its upper bound; None for fewer than two rounds.
    """
    logarithms = np.log(ratios)
    if len(logarithms) < 2:
        return None
    ratio = float(logarithms.mean())
    error = float(logarithms.std(ddof=1)) / math.sqrt(len(logarithms))
    half = error * _student((1 - confidence) / 2, len(logarithms) - 1)
    return math.exp(ratio), math.exp(ratio - half), math.exp(ratio + half)


def _student(tail: float, freedom: float) -> float:
    """What Student's t exceeds with probability `tail`.

    With t = sqrt(freedom) * tan(angle) its density is that of cos(angle) ** (freedom - 1), which is
    summed up from the right.
    """
    angles = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    steps = (density[1:] + density[:-1]) / 2
    beyond = np.append(np.cumsum(steps[::-1])[::-1], 0.0) / (2 * steps.sum())
    angle = float(np.interp(-tail, -beyond, angles))
    return math.sqrt(freedom) * math.tan(angle)
