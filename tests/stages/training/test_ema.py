"""Averages of weights against their closed forms and against sums written out."""

import numpy as np
import pytest
import torch

from cascade.stages.training.ema import EMA, MAX_STD, PowerAverage, gamma_of


def scalar(value: float) -> torch.nn.Module:
    network = torch.nn.Linear(1, 1, bias=False).double()
    network.weight.data.fill_(value)
    return network


def test_moving_average_of_a_constant_and_of_a_step():
    network = scalar(0)
    ema = EMA(network, half_life=1000, ramp=float("inf"))
    network.weight.data.fill_(1)
    for seen in range(100, 1100, 100):
        ema.update(network, seen, 100)
    assert ema.weights["weight"].item() == pytest.approx(0.5)  # after one half-life
    ramped = EMA(network, half_life=10**9, ramp=0.1)
    network.weight.data.fill_(2)
    ramped.update(network, 1000, 100)  # half-life 100
    assert ramped.weights["weight"].item() == pytest.approx(1.5)


def test_exponents_of_the_widths_in_the_paper():
    """EDM2, section 3.1: widths 0.05 and 0.10 are exponents 16.97 and 6.94."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3) and gamma_of(0.10) == pytest.approx(6.94, abs=5e-3)


def test_the_exponent_is_the_largest_root_of_its_cubic_and_the_width_comes_back():
    for std in np.geomspace(1e-3, 0.99 * MAX_STD, 50):
        s = std**-2
        assert gamma_of(std) == pytest.approx(np.roots([1, 7, 16 - s, 12 - s]).real.max(), rel=1e-9)
        gamma = gamma_of(std)
        assert np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(std, rel=1e-12), "EDM2, Eq. 123"
    assert gamma_of(MAX_STD) == pytest.approx(0, abs=1e-6)  # the mean of everything


@pytest.mark.parametrize("std", [0.03, 0.1, 0.2])
def test_the_profile_integrates_to_one_and_has_the_width_that_is_asked_for(std):
    gamma = gamma_of(std)
    x, share = np.polynomial.legendre.leggauss(400)
    x, share = (x + 1) / 2, share / 2
    density = share * (gamma + 1) * x**gamma
    mean = (density * x).sum()
    assert density.sum() == pytest.approx(1)
    assert np.sqrt((density * (x - mean) ** 2).sum()) == pytest.approx(std)


@pytest.mark.parametrize("batches", [[32] * 20, [8, 8, 64, 32, 1, 100, 16]])
def test_a_power_average_is_the_integral_over_the_weights_of_each_step(batches):
    """By images, so that steps of other sizes change nothing."""
    network = scalar(1e6)  # the initial weights have no share
    average, gamma = PowerAverage(network, 0.1), gamma_of(0.1)
    ends = np.cumsum(batches)
    values = np.random.default_rng(0).normal(size=len(batches))
    for end, size, value in zip(ends, batches, values, strict=True):
        network.weight.data.fill_(value)
        average.update(network, int(end), size)
    edges = (np.append(0, ends) / ends[-1]) ** (gamma + 1)
    assert average.weights["weight"].item() == pytest.approx((np.diff(edges) * values).sum(), rel=1e-12)


def test_the_longest_power_average_is_the_mean():
    network = scalar(0)
    average = PowerAverage(network, MAX_STD)
    for step in range(1, 11):
        network.weight.data.fill_(step)
        average.update(network, 4 * step, 4)
    assert average.weights["weight"].item() == pytest.approx(5.5)


@pytest.mark.parametrize("std", [0, -0.1, 0.3, float("nan")])
def test_widths_that_no_average_has_are_refused(std):
    with pytest.raises(ValueError, match=r"relative width of an average is .*, expected more than 0 and at most 0\.2887"):
        PowerAverage(scalar(0), std)
