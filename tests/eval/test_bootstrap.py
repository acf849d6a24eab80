"""Bootstrap intervals where the sampling distribution is known."""

import numpy as np
import pytest
from scipy.stats import t

from cascade.eval.bootstrap import bootstrap_interval, share_interval


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


def test_the_interval_of_a_share_is_students_and_stays_a_share():
    for freedom in (4, 9, 19, 100):
        got = share_interval(0.5, 0.01, freedom)
        assert (got.high - 0.5) / 0.01 == pytest.approx(t.ppf(0.975, freedom), rel=0.02)
    assert share_interval(0.99, 0.1, 19).high == 1 and share_interval(0.01, 0.1, 19).low == 0


def test_the_same_images_have_the_same_interval():
    values = np.arange(30.0)
    one, same = (bootstrap_interval(lambda i: values[i].mean(), 30, num_resamples=50) for _ in range(2))
    assert one == same


@pytest.mark.parametrize("arguments", [{"count": 1}, {"num_resamples": 1}])
def test_senseless_requests_are_refused(arguments):
    with pytest.raises(ValueError):
        bootstrap_interval(lambda index: 0.0, **{"count": 10, "num_resamples": 10, **arguments})
