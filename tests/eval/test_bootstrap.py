"""Bootstrap intervals where the sampling distribution is known."""

import numpy as np
import pytest

from cascade.eval.bootstrap import bootstrap_interval
from cascade.eval.frechet import frechet_distance


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 400)
    got = bootstrap_interval(lambda index: values[index].mean(), 400, num_resamples=2000)
    half = 1.96 * values.std() / 20
    assert got.estimate == values.mean()
    assert (got.low, got.high) == pytest.approx((got.estimate - half, got.estimate + half), abs=0.1 * half)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        values = rng.exponential(1, 100)
        got = bootstrap_interval(lambda i, v=values: v[i].mean(), 100, num_resamples=200)
        hits += got.low <= 1 <= got.high
    assert 0.89 < hits / 400 < 0.98


def test_repeated_images_do_not_push_a_distance_out_of_its_own_interval():
    # A resample holds 63 % of the images, so its distance to anything is larger by nature.
    rng = np.random.default_rng(2)
    samples, mean, cov = rng.normal(size=(60, 30)), np.zeros(30), np.eye(30)

    def distance(index: np.ndarray) -> float:
        return frechet_distance(samples[index].mean(axis=0), np.cov(samples[index], rowvar=False), mean, cov)

    got = bootstrap_interval(distance, 60, num_resamples=60)
    assert got.low < got.estimate == distance(np.arange(60)) < got.high


def test_the_same_images_have_the_same_interval():
    values = np.arange(30.0)
    one, same = (bootstrap_interval(lambda i: values[i].mean(), 30, num_resamples=50) for _ in range(2))
    assert one == same


@pytest.mark.parametrize("arguments", [{"count": 1}, {"num_resamples": 1}])
def test_senseless_requests_are_refused(arguments):
    with pytest.raises(ValueError):
        bootstrap_interval(lambda index: 0.0, **{"count": 10, "num_resamples": 10, **arguments})
