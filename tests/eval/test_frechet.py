"""The Frechet distance against closed forms and against scipy's matrix square root."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from cascade.eval.bootstrap import distance_interval
from cascade.eval.frechet import distance_of_part, frechet_distance, standard_error


def by_square_root(mean1, cov1, mean2, cov2) -> float:
    """The textbook formula, by a general matrix square root."""
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * np.real(sqrtm(cov1 @ cov2))))


def random_covariance(rng: np.random.Generator, dimension: int, rank: int) -> np.ndarray:
    factor = rng.normal(size=(dimension, rank))
    return factor @ factor.T / rank


def test_one_dimension_is_the_difference_of_means_and_of_deviations():
    got = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.5]), np.array([[9.0]]))
    assert got == pytest.approx((1.0 - 3.5) ** 2 + (2 - 3) ** 2, rel=1e-12)


def test_commuting_covariances_compare_deviation_by_deviation():
    basis = ortho_group.rvs(40, random_state=0)
    rng = np.random.default_rng(0)
    deviations1, deviations2 = rng.uniform(0, 3, 40), rng.uniform(0, 3, 40)
    mean1, mean2 = rng.normal(size=40), rng.normal(size=40)
    got = frechet_distance(mean1, (basis * deviations1**2) @ basis.T, mean2, (basis * deviations2**2) @ basis.T)
    want = ((mean1 - mean2) ** 2).sum() + ((deviations1 - deviations2) ** 2).sum()
    assert got == pytest.approx(want, rel=1e-12)


def test_scaling_a_gaussian_by_a_factor():
    # W2 between x and a x is (1 - a)^2 E|x|^2, whatever the covariance.
    rng = np.random.default_rng(1)
    mean, cov = rng.normal(size=30), random_covariance(rng, 30, 60)
    want = 0.25 * (mean @ mean + np.trace(cov))
    assert frechet_distance(mean, cov, 0.5 * mean, 0.25 * cov) == pytest.approx(want, rel=1e-12)


def test_agrees_with_scipy_at_full_rank():
    rng = np.random.default_rng(2)
    mean1, mean2 = rng.normal(size=64), rng.normal(size=64)
    cov1, cov2 = random_covariance(rng, 64, 200), random_covariance(rng, 64, 100)
    want = by_square_root(mean1, cov1, mean2, cov2)
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("rank", [1, 10, 100])
def test_a_distribution_is_at_distance_zero_from_itself_at_any_rank(rank):
    rng = np.random.default_rng(3)
    mean, cov = rng.normal(size=50), random_covariance(rng, 50, rank)
    assert frechet_distance(mean, cov, mean.copy(), cov.copy()) <= 1e-13 * np.trace(cov)


def test_low_rank_in_disjoint_subspaces_has_no_cross_term():
    rng = np.random.default_rng(4)
    basis = ortho_group.rvs(60, random_state=4)
    first, second = basis[:, :7], basis[:, 7:19]
    cov1 = first @ random_covariance(rng, 7, 20) @ first.T
    cov2 = second @ random_covariance(rng, 12, 20) @ second.T
    got = frechet_distance(np.zeros(60), cov1, np.zeros(60), cov2)
    assert got == pytest.approx(np.trace(cov1) + np.trace(cov2), rel=1e-12)


def test_low_rank_inside_a_subspace_equals_full_rank_in_that_subspace():
    rng = np.random.default_rng(5)
    basis = ortho_group.rvs(80, random_state=5)[:, :9]
    cov1, cov2 = random_covariance(rng, 9, 30), random_covariance(rng, 9, 30)
    zero = np.zeros(80)
    got = frechet_distance(zero, basis @ cov1 @ basis.T, zero, basis @ cov2 @ basis.T)
    assert got == pytest.approx(by_square_root(zero[:9], cov1, zero[:9], cov2), rel=1e-10)


def test_low_ranks_that_overlap_in_part():
    # Shared directions 0 ... 4, each side with 5 of its own: only the shared ones have a cross term.
    deviations1, deviations2 = np.zeros(30), np.zeros(30)
    deviations1[:10], deviations2[:5], deviations2[10:15] = 3.0, np.arange(1, 6), 2.0
    basis = ortho_group.rvs(30, random_state=8)
    cov1, cov2 = (basis * deviations1**2) @ basis.T, (basis * deviations2**2) @ basis.T
    got = frechet_distance(np.zeros(30), cov1, np.zeros(30), cov2)
    assert got == pytest.approx(((deviations1 - deviations2) ** 2).sum(), rel=1e-7)


def test_statistics_rounded_to_single_precision_are_close():
    rng = np.random.default_rng(7)
    cov1, cov2 = random_covariance(rng, 60, 20), random_covariance(rng, 60, 90)
    rounded = cov1.astype(np.float32)
    assert np.linalg.eigvalsh(rounded.astype(np.float64))[0] < 0
    zero = np.zeros(60)
    want = frechet_distance(zero, cov1, zero, cov2)
    assert frechet_distance(zero, rounded, zero, cov2) == pytest.approx(want, rel=1e-3)


def test_is_symmetric_and_ignores_rotation_and_common_shift():
    rng = np.random.default_rng(6)
    mean1, mean2 = rng.normal(size=20), rng.normal(size=20)
    cov1, cov2 = random_covariance(rng, 20, 8), random_covariance(rng, 20, 40)
    want = frechet_distance(mean1, cov1, mean2, cov2)
    turn = ortho_group.rvs(20, random_state=6)
    turned = frechet_distance(turn @ mean1 + 7, turn @ cov1 @ turn.T, turn @ mean2 + 7, turn @ cov2 @ turn.T)
    assert frechet_distance(mean2, cov2, mean1, cov1) == pytest.approx(want, rel=1e-12)
    assert turned == pytest.approx(want, rel=1e-10)


def test_point_masses_are_at_the_squared_distance_of_their_means():
    zero = np.zeros((3, 3))
    assert frechet_distance(np.zeros(3), zero, np.array([1.0, 2.0, 2.0]), zero) == 9.0


@pytest.mark.parametrize(
    ("mean2", "cov2", "message"),
    [
        (np.zeros(3), np.eye(3), "different extractors"),
        (np.zeros(2), np.eye(3), "shape"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (np.zeros(2), np.diag([1.0, -1.0]), "eigenvalue"),
        (np.zeros(2), np.diag([1.0, np.nan]), "NaN"),
    ],
)
def test_what_is_not_a_pair_of_gaussians_is_refused(mean2, cov2, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(np.zeros(2), np.eye(2), mean2, cov2)


@pytest.mark.parametrize("count", [8, 200])
def test_the_distance_of_some_features_is_that_of_their_statistics(count):
    rng = np.random.default_rng(count)
    features, real = rng.normal(size=(count, 12)), rng.normal(0.5, 2, size=(9, 12))  # both sides short of full rank at 8
    mean, cov = real.mean(axis=0), np.cov(real, rowvar=False)
    distance = distance_of_part(features, mean, cov)
    for index in (np.arange(count), rng.permutation(count)[: count // 2], np.arange(2)):
        taken = features[index]
        want = frechet_distance(taken.mean(axis=0), np.cov(taken, rowvar=False), mean, cov)
        assert distance(index) == pytest.approx(want, rel=1e-6)


def error_of(features, real_mean, real_cov, groups=None):
    cov = np.atleast_2d(np.cov(features, rowvar=False))
    return standard_error(features, features.mean(axis=0), cov, real_mean, real_cov, groups)


def test_the_standard_error_is_that_of_leaving_each_feature_out():
    # Far from the reference first order is all: the jackknife, by brute force.
    rng = np.random.default_rng(0)
    features, real = rng.normal(size=(150, 5)) * np.arange(1, 6) + 3, rng.normal(size=(60, 5))
    mean, cov = real.mean(axis=0), np.cov(real, rowvar=False)
    distance = distance_of_part(features, mean, cov)
    without = np.array([distance(np.delete(np.arange(150), i)) for i in range(150)])
    jackknife = np.sqrt(149 * without.var())
    assert error_of(features, mean, cov) == pytest.approx(jackknife, rel=0.03)


def test_the_standard_error_of_one_dimension_in_closed_form():
    # Distance (m - a)^2 + (s - b)^2 of N(m, s^2): variance 4 (m - a)^2 s^2 / n + 2 (s - b)^2 s^2 / n to first order.
    n, m, s = 200_000, 1.0, 2.0
    features = np.random.default_rng(1).normal(m, s, (n, 1))
    want = np.sqrt((4 * (m - 3) ** 2 * s**2 + 2 * (s - 0.5) ** 2 * s**2) / n)
    assert error_of(features, np.array([3.0]), np.array([[0.25]])) == pytest.approx(want, rel=0.02)


def test_features_that_repeat_in_groups_are_no_more_than_their_groups():
    rng = np.random.default_rng(2)
    once = rng.normal(size=(400, 6)) + 2
    fourfold = np.repeat(once, 4, axis=0)
    groups = np.repeat(np.arange(400), 4)
    alone = error_of(once, np.zeros(6), np.eye(6))
    assert error_of(fourfold, np.zeros(6), np.eye(6), groups) == pytest.approx(alone, rel=0.05)
    assert error_of(fourfold, np.zeros(6), np.eye(6)) == pytest.approx(alone / 2, rel=0.05)


def spread_and_coverage(count, dimension, shift, trials, seed):
    """Share of trials whose interval holds the mean distance, and the mean standard error over the true one."""
    rng = np.random.default_rng(seed)
    scales, mean, cov = np.linspace(0.6, 1.5, dimension), np.zeros(dimension), np.eye(dimension)
    if shift is None:
        scales, shift = np.ones(dimension), 0.0
    found, errors = [], []
    for _ in range(trials):
        features = rng.normal(size=(count, dimension)) * scales + shift
        found.append(distance_of_part(features, mean, cov)(np.arange(count)))
        errors.append(error_of(features, mean, cov))
    intervals = [distance_interval(*each) for each in zip(found, errors, strict=True)]
    hits = np.mean([one.low <= np.mean(found) <= one.high for one in intervals])
    return hits, np.sqrt(np.mean(np.square(errors))) / np.std(found)


@pytest.mark.parametrize(("dimension", "shift"), [(4, 0.5), (16, 0.2), (16, None), (64, 0.1)])
def test_intervals_hold_the_mean_distance_of_other_sets_as_often_as_they_say(dimension, shift):
    hits, ratio = spread_and_coverage(300, dimension, shift, trials=200, seed=dimension)
    assert 0.91 <= hits <= 0.99 and 0.85 < ratio < 1.2  # 200 trials: 0.95 +- 0.03


@pytest.mark.slow
@pytest.mark.parametrize("count", [300, 1000])
@pytest.mark.parametrize("dimension", [4, 16, 64])
@pytest.mark.parametrize("shift", [None, 0.3])
def test_coverage_is_between_93_and_97_percent(count, dimension, shift):
    hits, _ = spread_and_coverage(count, dimension, shift, trials=1500, seed=count)
    assert 0.93 <= hits <= 0.975


def test_an_interval_of_a_distance_of_nothing_is_finite_and_not_below_zero():
    assert distance_interval(0.0, 0.0).high == 0 and distance_interval(0.0, 2.0).low == 0
    found = distance_interval(4.0, 1.0)
    assert (found.low, found.high) == pytest.approx(((2 - 0.49) ** 2, (2 + 0.49) ** 2), rel=1e-3)
