"""How much a measured number would vary with other images of the same kind: intervals of means and of distances."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95  # share of other sets of images whose mean number an interval holds
NORMAL = 1.959964  # standard deviations on either side of the mean that hold it


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A measured number with the interval that covers its sampling variation."""

    estimate: float
    low: float
    high: float
    confidence: float


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    *,
    num_resamples: int,
    on_resample: Callable[[int], None] | None = None,
) -> Interval:
    """Interval of a statistic of `count` images from `num_resamples` draws of as many with replacement, always the same ones.

    The spread of the redrawn values around their own mean is laid around the estimate (Efron & Tibshirani 1993, chapter 13). For
    means only: distances grow when images repeat, which makes this interval of one up to five times too wide.

    `statistic` gives the number that results from the images of indices [count]; `on_resample` is told the number of draws done.
    Raises ValueError below 2 images or resamples.
    """
    if count < 2 or num_resamples < 2:
        raise ValueError(f"at least 2 images and 2 resamples are needed, got {count} and {num_resamples}")
    rng = np.random.default_rng(0)
    estimate = float(statistic(np.arange(count)))
    redrawn = np.empty(num_resamples)
    for done in range(num_resamples):
        redrawn[done] = statistic(rng.integers(0, count, count))
        if on_resample is not None:
            on_resample(done + 1)
    low, high = np.quantile(redrawn - redrawn.mean(), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(estimate=estimate, low=estimate + float(low), high=estimate + float(high), confidence=CONFIDENCE)


def distance_interval(estimate: float, standard_error: float) -> Interval:
    """Interval of a squared distance, symmetric in its root d, which is nearer to normal: (d -+ 1.96 e / 2d)^2."""
    if estimate <= 0:
        return Interval(estimate=estimate, low=0.0, high=NORMAL * standard_error, confidence=CONFIDENCE)
    root = math.sqrt(estimate)
    reach = NORMAL * standard_error / (2 * root)
    return Interval(estimate=estimate, low=max(root - reach, 0.0) ** 2, high=(root + reach) ** 2, confidence=CONFIDENCE)


def share_interval(estimate: float, standard_error: float, freedom: int) -> Interval:
    """Interval of a share, in 0 ... 1, whose standard error has so many degrees of freedom."""
    quantile = student_quantile(freedom)
    low, high = max(estimate - quantile * standard_error, 0.0), min(estimate + quantile * standard_error, 1.0)
    return Interval(estimate=estimate, low=low, high=high, confidence=CONFIDENCE)


def student_quantile(freedom: int) -> float:
    """What Student's distribution has in place of `NORMAL`.

    By its series in 1/freedom (Abramowitz & Stegun 1964, 26.7.5), good to 2 % from 4 degrees on; below that by its table 26.10.
    """
    if freedom < 4:
        return (12.706, 4.303, 3.182)[freedom - 1]
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
