"""Frechet distance between two Gaussians, the number behind FID and its relatives."""

import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024  # features that are held in double precision at a time

Floats = NDArray[np.floating]


def frechet_distance(mean1: Floats, cov1: Floats, mean2: Floats, cov2: Floats) -> float:
    """Squared 2-Wasserstein distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017, arXiv:1706.08500, Eq. 6).

        |mean1 - mean2|^2 + tr cov1 + tr cov2 - 2 tr (cov1^1/2 cov2 cov1^1/2)^1/2

    Each covariance is factored as cov = A A^T, with as many columns as its rank. The last trace is then the sum of the singular
    values of X = A1^T A2, taken as the square roots of the eigenvalues of the smaller of X X^T and X^T X. So fewer images than
    dimensions cost less instead of breaking anything, and nothing near-singular is square-rooted.

    Means are [D], covariances [D, D]; the distance is at least 0. Raises ValueError if shapes don't match, a value is not finite,
    or a covariance is not symmetric positive semi-definite.
    """
    if mean1.ndim != 1 or mean1.shape != mean2.shape:
        raise ValueError(
            f"means have shapes {mean1.shape} and {mean2.shape}, expected the same [D];"
            " were the two sets of features made by different extractors?"
        )
    factor1, factor2 = _factor(cov1, len(mean1)), _factor(cov2, len(mean1))
    difference = mean1.astype(np.float64) - mean2.astype(np.float64)
    overlap = _sum_of_singular_values(factor1.T @ factor2)
    distance = difference @ difference + (factor1**2).sum() + (factor2**2).sum() - 2 * overlap
    return max(float(distance), 0.0)


def distance_of_part(features: Floats, mean: Floats, cov: Floats) -> Callable[[NDArray[np.int64]], float]:
    """Frechet distance of some of the features, [N, D], to N(mean, cov), as a function of which are taken, [n] with n at least 2.

    Distance and errors are those of `frechet_distance` of their statistics. The reference is factored once, cov = A A^T; the
    overlap of the two covariances is then the sum of singular values of the centred (X - mean) A over the root of n - 1.
    """
    factor = _factor(cov, len(mean))
    reference_trace = (factor**2).sum()

    def distance(index: NDArray[np.int64]) -> float:
        rows = features[index].astype(np.float64) - mean
        shift = rows.mean(axis=0)
        rows -= shift
        rows /= np.sqrt(len(rows) - 1)
        within = (rows**2).sum() + reference_trace
        return max(float(shift @ shift + within - 2 * _sum_of_singular_values(rows @ factor)), 0.0)

    return distance


def standard_error(
    features: Floats, mean: Floats, cov: Floats, real_mean: Floats, real_cov: Floats, groups: NDArray | None = None
) -> float:
    """Standard deviation of the Frechet distance of features [N, D] to N(real_mean, real_cov) among other sets of as many.

    The infinitesimal jackknife (Jaeckel 1972; Efron 1982, chapter 6): each feature moves the distance by

        h(x) = 2 (mean - real_mean).(x - mean) + |x - mean|^2 - (x - mean)^T T (x - mean)

    where T = A S^-1/2 A^T with real_cov = A A^T and S = A^T cov A is the optimal transport from one Gaussian to the other, and
    the variance is that of h over N. What is of second order in the statistics' errors, which is all there is where the two
    Gaussians are equal, is counted twice in it (Efron & Stein 1981), so it is taken off once, at most half of the whole:

        2/N^2 (tr cov^2 - (tr cov)^2 / N) + 1/N^2 (sum_ij s_i s_j / (sqrt s_i + sqrt s_j)^2 + sum_i s_i / 4)

    with the eigenvalues s of S, as if features were Gaussian. `groups` [N] says which features are not independent of each other;
    sums over groups then take the place of single features. `mean` and `cov` are those of the features.
    """
    factor = _factor(real_cov, len(real_mean))
    values, vectors = np.linalg.eigh(factor.T @ cov @ factor)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1:].sum()
    values, roots = values[kept], np.sqrt(values[kept])
    transport = factor @ (vectors[:, kept] / np.sqrt(roots))  # T = transport transport^T
    influence = np.empty(len(features))
    for start in range(0, len(features), BLOCK):
        centred = features[start : start + BLOCK].astype(np.float64) - mean
        of_covariance = (centred**2).sum(axis=1) - ((centred @ transport) ** 2).sum(axis=1)
        influence[start : start + BLOCK] = 2 * centred @ (mean - real_mean) + of_covariance
    count = len(features)
    if groups is None:
        of_first_order = float(influence.var(ddof=1)) / count
    else:
        sums = np.bincount(np.unique(groups, return_inverse=True)[1], influence - influence.mean())
        of_first_order = float((sums**2).sum()) / count**2 * len(sums) / max(len(sums) - 1, 1)
    pairs = (np.outer(values, values) / (roots[:, None] + roots) ** 2).sum() + values.sum() / 4
    of_second_order = (2 * ((cov**2).sum() - np.trace(cov) ** 2 / count) + pairs) / count**2
    return math.sqrt(max(of_first_order - of_second_order, of_first_order / 2))


def _sum_of_singular_values(x: NDArray[np.float64]) -> float:
    gram = x @ x.T if len(x) <= len(x.T) else x.T @ x
    return float(np.sqrt(np.linalg.eigvalsh(gram).clip(min=0)).sum()) if x.size else 0.0


def _factor(cov: Floats, dimension: int) -> NDArray[np.float64]:
    """A of shape [D, rank] with cov = A A^T."""
    if cov.shape != (dimension, dimension):
        raise ValueError(f"a covariance has shape {cov.shape}, expected [{dimension}, {dimension}]")
    cov = cov.astype(np.float64)
    if not np.isfinite(cov).all():
        raise ValueError("a covariance holds NaN or infinite values")
    scale = float(np.abs(cov).max(initial=0.0))
    if np.abs(cov - cov.T).max(initial=0.0) > 1e-6 * scale:
        raise ValueError("a covariance is not symmetric; is this array a covariance at all?")
    cov = (cov + cov.T) / 2
    tolerance = dimension * np.finfo(np.float64).eps * scale
    with suppress(np.linalg.LinAlgError):
        factor: NDArray[np.float64] = np.linalg.cholesky(cov).astype(np.float64, copy=False)
        if np.diagonal(factor).min(initial=np.inf) ** 2 > tolerance:
            return factor
    # Of less than full rank, not positive semi-definite to rounding as when it was stored in single precision, or no covariance.
    values, vectors = np.linalg.eigh(cov)
    if values[0] < -1e-4 * values[-1]:
        raise ValueError(f"a covariance has the eigenvalue {values[0]:g}, but covariances have none below 0")
    kept = values > tolerance
    return vectors[:, kept] * np.sqrt(values[kept])
