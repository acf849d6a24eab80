"""How often intervals of a Frechet distance hold what other sets of as many samples have on average.

    python benchmarks/intervals.py            # about three minutes of a core; prints a table in Markdown

Features are Gaussian, or Gaussian of a random size ("heavy"), and measured against a unit Gaussian: "equal" to it, "near", or
"far". Of each method the mean width over that of the middle 95 % of a normal distribution with the true standard deviation; of
the one in use also the share of trials whose interval holds the mean distance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cascade.eval.bootstrap import NORMAL, distance_interval
from cascade.eval.frechet import distance_of_part, standard_error

TRIALS, QUICK_TRIALS = 1000, 20  # of the method in use, and of those that redraw
RESAMPLES = 40

Draw = Callable[[np.random.Generator, int, int], np.ndarray]
KINDS: dict[str, Draw] = {
    "equal": lambda rng, n, d: rng.normal(size=(n, d)),
    "near": lambda rng, n, d: rng.normal(size=(n, d)) * np.linspace(0.8, 1.2, d) + 0.3 / np.sqrt(d),
    "far": lambda rng, n, d: rng.normal(size=(n, d)) * np.linspace(0.5, 1.6, d) + np.eye(d)[0],
    "heavy": lambda rng, n, d: rng.normal(size=(n, d)) * np.sqrt(rng.gamma(4, 0.25, (n, 1))) + 0.5 / np.sqrt(d),
}


def row(kind: str, dimension: int, count: int, rng: np.random.Generator) -> list[str]:
    """A line of the table: shares and widths of the bootstrap, of random halves and of the method in use."""
    mean, cov = np.zeros(dimension), np.eye(dimension)
    ends: dict[str, list[tuple[float, float]]] = {"bootstrap": [], "halves": [], "ours": []}
    found = []
    for trial in range(TRIALS):
        features = KINDS[kind](rng, count, dimension)
        of_part = distance_of_part(features, mean, cov)
        estimate = of_part(np.arange(count))
        found.append(estimate)
        error = standard_error(features, features.mean(axis=0), np.cov(features, rowvar=False), mean, cov)
        interval = distance_interval(estimate, error)
        ends["ours"].append((interval.low, interval.high))
        if trial < QUICK_TRIALS:
            redrawn = np.array([of_part(rng.integers(0, count, count)) for _ in range(RESAMPLES)])
            low, high = np.quantile(redrawn - redrawn.mean(), [0.025, 0.975])
            ends["bootstrap"].append((estimate + low, estimate + high))
            reach = NORMAL * np.std([of_part(rng.permutation(count)[: count // 2]) for _ in range(RESAMPLES)], ddof=1)
            ends["halves"].append((estimate - reach, estimate + reach))
    low, high = np.transpose(ends["ours"])
    held = np.mean((low <= np.mean(found)) & (np.mean(found) <= high))
    widths = [np.mean(np.diff(method)) / (2 * NORMAL * np.std(found)) for method in ends.values()]
    return [kind, str(dimension), str(count), *(f"{width:.2f}" for width in widths), f"{held:.1%}"]


def main() -> None:
    rng = np.random.default_rng(0)
    print("| features | d | n | bootstrap | halves | in use | holds |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in KINDS:
        for dimension in (4, 16, 64):
            for count in (100, 300, 1000):
                print(f"| {' | '.join(row(kind, dimension, count, rng))} |", flush=True)


if __name__ == "__main__":
    main()
