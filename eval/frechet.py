"""Frechet distance between two Gaussians, the number behind FID and its relatives."""

from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

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


def redrawn_distance(features: Floats, mean: Floats, cov: Floats) -> Callable[[NDArray[np.int64]], float]:
    """Frechet distance of features [N, D] to N(mean, cov) as a function of which of them are taken, for `bootstrap_interval`.

    Indices, [n], may repeat; n is at least 2. Distance and errors are those of `frechet_distance` of the features taken.

    The reference is factored once, cov = A A^T, and the features are projected once, Y = (X - mean) A. Of the features taken,
    the overlap of the two covariances is then the sum of singular values of the centred Y over the root of their number less 1.
    """
    factor = _factor(cov, len(mean))
    centred = features.astype(np.float64) - mean
    projected, squares, reference_trace = centred @ factor, (centred**2).sum(axis=1), (factor**2).sum()

    def distance(index: NDArray[np.int64]) -> float:
        times, count = np.bincount(index, minlength=len(features)), len(index)
        shift = times @ centred / count
        trace = (times @ squares - count * shift @ shift) / (count - 1)
        taken = times > 0
        rows = (projected[taken] - shift @ factor) * np.sqrt(times[taken, None] / (count - 1))
        return max(float(shift @ shift + trace + reference_trace - 2 * _sum_of_singular_values(rows)), 0.0)

    return distance


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
