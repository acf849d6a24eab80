"""Metrics of a set of images, mostly against another set: KID, precision, recall, density, coverage, Inception Score.

Features are [N, D], one row per image. The Frechet distance has a file of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascade.eval.statistics import Features

ADM_SPLIT = 5000  # images in a part of the Inception Score as ADM's evaluator has it
BLOCK = 1024  # rows of a distance matrix that are held at a time, at most
BLOCK_VALUES = 1 << 23  # of that matrix
NEAREST = 6  # times k neighbours are looked at, where groups of features are left out


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over subsets or splits, and their standard deviation (divided by their number)."""

    mean: float
    std: float


def kernel_distance(generated: Features, real: Features) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3; may fall below 0.

    (Binkowski et al. 2018, arXiv:1801.01401, section 4; Gretton et al. 2012, Eq. 3.) Raises ValueError if a set has fewer than 2
    features or the dimensions differ.
    """
    _check_features(generated, real, minimum=2)
    x, y = generated.astype(np.float64), real.astype(np.float64)
    xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = sum((values.sum() - np.trace(values)) / (len(values) * (len(values) - 1)) for values in (xx, yy))
    return float(within - 2 * xy.mean())


def kid(generated: Features, real: Features, *, num_subsets: int = 100, subset_size: int = 1000) -> Estimate:
    """Kernel Inception Distance: `kernel_distance` averaged over random subsets of both sets, always the same ones.

    Each is drawn without replacement, and has the smaller set's size where that is less than `subset_size`.
    """
    size = min(subset_size, len(generated), len(real))
    rng = np.random.default_rng(0)
    sets = (generated, real)
    values = [kernel_distance(*(each[rng.choice(len(each), size, replace=False)] for each in sets)) for _ in range(num_subsets)]
    return Estimate(mean=float(np.mean(values)), std=float(np.std(values)))


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How two sets overlap, where each feature has a ball that reaches to its k-th nearest neighbour, its rim included.

    Per measure the values of which it is the mean. ADM reports precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991)
    with k = 3 and 10,000 real images; Naeem et al. (2020, arXiv:2002.09797) define density and coverage and suggest k = 5.

    precision: Whether some real ball holds each generated feature, [N].
    recall: Whether some generated ball holds each real feature, [M].
    density: Number of real balls that hold each generated feature, over k, [N]; can exceed 1.
    coverage: Whether the ball of each real feature holds a generated one, [M].
    recall_without, coverage_without: The two means where a group of the generated features is left out, [groups]; empty where
        none was given. Their spread is that of other generated sets, which the values of real features don't show.
    """

    precision: NDArray[np.bool_]
    recall: NDArray[np.bool_]
    density: NDArray[np.float64]
    coverage: NDArray[np.bool_]
    recall_without: NDArray[np.float64]
    coverage_without: NDArray[np.float64]


def overlap(generated: Features, real: Features, *, k: int, num_groups: int = 0) -> Overlap:
    """The overlap of two sets; with `num_groups` also without each of so many equal random groups of the generated features.

    Raises ValueError if k is below 1, a set has no more than k features, or the dimensions differ.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    _check_features(generated, real, minimum=k + 1)
    groups = np.random.default_rng(0).permutation(len(generated)) % max(num_groups, 1)
    reach_real = _reach(real, k)[0]
    reach_generated, reach_without = _reach(generated, k, groups, num_groups)
    balls = np.zeros(len(generated), np.int64)
    covered, recalled = np.zeros(len(real), bool), np.zeros(len(real), bool)
    covered_without, recalled_without = np.zeros(num_groups), np.zeros(num_groups)
    members = [groups == group for group in range(num_groups)]
    for rows, squared in _squared_distances(real, generated):
        inside = squared <= reach_real[rows, None]
        balls += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        recalled[rows] = (squared <= reach_generated).any(axis=1)
        covering = np.array([inside[:, member].any(axis=1) for member in members])  # by a feature of each group, [groups, rows]
        for group in range(num_groups):
            covered_without[group] += (covering.sum(axis=0) > covering[group]).sum()
            recalled_without[group] += (squared <= reach_without[group]).any(axis=1).sum()
    return Overlap(
        precision=balls > 0,
        recall=recalled,
        density=balls / k,
        coverage=covered,
        recall_without=recalled_without / len(real),
        coverage_without=covered_without / len(real),
    )


def jackknife_error(without: NDArray[np.float64]) -> float:
    """Standard error of a number, from its values where each of G equal groups of images is left out, [G] (Efron 1982, ch. 3)."""
    return float(np.sqrt((len(without) - 1) * without.var()))


def inception_score(probabilities: NDArray[np.floating], *, num_splits: int, in_order: bool = False) -> Estimate:
    """exp of the mean Kullback-Leibler divergence between each image's class probabilities and their mean.

    (Salimans et al. 2016, arXiv:1606.03498, section 4.) Probabilities are [N, C]. Equal parts are scored on their own: random
    ones, always the same, since parts of images that are sorted by class hold few classes each and score far too low; or with
    `in_order` consecutive ones, as ADM's evaluator has them. Raises ValueError if rows are not probabilities or there are fewer
    than splits.
    """
    if probabilities.ndim != 2 or len(probabilities) < num_splits or num_splits < 1:
        raise ValueError(f"probabilities have shape {probabilities.shape}, expected [N, classes] with N >= {num_splits} splits")
    p = probabilities.astype(np.float64)
    if p.min() < 0 or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise ValueError("rows must be probabilities that sum to 1; were logits passed instead?")
    if num_splits > 1 and not in_order:
        p = p[np.random.default_rng(0).permutation(len(p))]
    scores = [np.exp(_mean_divergence(part)) for part in np.array_split(p, num_splits)]
    return Estimate(mean=float(np.mean(scores)), std=float(np.std(scores)))


def _mean_divergence(p: NDArray[np.float64]) -> float:
    """Mean of sum p log(p / mean p) over rows, in nats; 0 log 0 = 0."""
    ratio = np.where(p > 0, p, 1.0) / np.where(p > 0, p.mean(axis=0), 1.0)
    return float((p * np.log(ratio)).sum(axis=1).mean())


def _squared_distances(x: Features, y: Features) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Squared Euclidean distances of blocks of x to all of y: (rows of x, [rows, len(y)]).

    |x|^2 + |y|^2 - 2 x.y around the mean of y, so that a large common offset cancels nothing.
    """
    centre = y.mean(axis=0, dtype=np.float64)
    step = min(BLOCK, max(BLOCK_VALUES // len(y), 1))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        block = x[rows].astype(np.float64) - centre
        squared = np.empty((len(block), len(y)))
        for other in range(0, len(y), BLOCK):
            part = y[other : other + BLOCK].astype(np.float64) - centre
            squared[:, other : other + BLOCK] = (part**2).sum(axis=1) - 2 * block @ part.T
        squared += (block**2).sum(axis=1)[:, None]
        yield rows, np.maximum(squared, 0, out=squared)


def _reach(
    features: Features, k: int, groups: NDArray[np.int64] | None = None, num_groups: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared distance of each feature to its k-th nearest neighbour in the same set, itself not counted, [N]; and the same where
    one of the groups is left out, [groups, N], less than any distance for the features of the group themselves."""
    reach, without = np.empty(len(features)), np.full((num_groups, len(features)), -1.0)
    for rows, squared in _squared_distances(features, features):
        squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = np.inf
        reach[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
        if groups is not None and num_groups:
            without[:, rows] = _reach_without(squared, groups, num_groups, k)
            without[groups[rows], np.arange(rows.start, rows.stop)] = -1.0
    return reach, without


def _reach_without(squared: NDArray[np.float64], groups: NDArray[np.int64], num_groups: int, k: int) -> NDArray[np.float64]:
    """The k-th least of each row where the columns of one of the groups are left out, [groups, rows]."""
    nearest = np.argpartition(squared, min(NEAREST * k, squared.shape[1]) - 1, axis=1)[:, : NEAREST * k]
    unsorted = np.take_along_axis(squared, nearest, axis=1)
    order = np.argsort(unsorted, axis=1)
    distances, of_groups = np.take_along_axis(unsorted, order, axis=1), np.take_along_axis(groups[nearest], order, axis=1)
    found = np.empty((num_groups, len(squared)))
    for group in range(num_groups):
        left = (of_groups != group).cumsum(axis=1)
        found[group] = np.take_along_axis(distances, (left >= k).argmax(axis=1)[:, None], axis=1)[:, 0]
        few = np.flatnonzero(left[:, -1] < k)  # nearly all neighbours are of one group, as in a very small set
        if len(few):
            found[group, few] = np.partition(squared[np.ix_(few, groups != group)], k - 1, axis=1)[:, k - 1]
    return found


def _check_features(generated: Features, real: Features, minimum: int) -> None:
    if generated.ndim != 2 or real.ndim != 2 or generated.shape[1] != real.shape[1]:
        raise ValueError(f"features have shapes {generated.shape} and {real.shape}, expected [N, D] and [M, D]; one extractor?")
    if min(len(generated), len(real)) < minimum:
        raise ValueError(f"at least {minimum} features of each set are needed, got {len(generated)} and {len(real)}")
