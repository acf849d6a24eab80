"""How much a measured number would vary with other images of the same kind."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95  # share of the redrawn values that an interval holds


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

    The spread of the redrawn values around their own mean is laid around the estimate (Efron & Tibshirani 1993, chapter 13).
    Distances between distributions grow when images repeat, and this keeps that growth out; the bias that a distance has at
    `count` images stays in.

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
