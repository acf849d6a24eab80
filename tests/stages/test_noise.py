import dataclasses
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy import stats

from cascade.stages.noise import (
    LAWS,
    MAX_LOG_SNR,
    CosineLaw,
    CosineSchedule,
    LinearSchedule,
    LogNormalLaw,
    SR3Law,
    add_noise,
    alpha_bar_of,
    betas_of,
    interpolate,
    law_to_dict,
    log_snr_of_alpha_bar,
    resolution_shift,
    sigma_of,
    signal_and_noise,
)

LEVELS = torch.linspace(-15, 15, 61, dtype=torch.float64)


def test_amplitudes_preserve_variance_and_name_the_ratio():
    alpha, sigma_vp = signal_and_noise(LEVELS)
    torch.testing.assert_close(alpha**2 + sigma_vp**2, torch.ones_like(LEVELS))
    torch.testing.assert_close(torch.log(alpha**2 / sigma_vp**2), LEVELS)


def test_alpha_bar_sigma_and_log_snr_are_one_quantity():
    torch.testing.assert_close(log_snr_of_alpha_bar(alpha_bar_of(LEVELS)), LEVELS)
    torch.testing.assert_close(-2 * sigma_of(LEVELS).log(), LEVELS)
    torch.testing.assert_close(alpha_bar_of(LEVELS), 1 / (1 + sigma_of(LEVELS) ** 2))  # glossary of EDM and DDPM


def test_add_noise_gives_each_image_its_own_level():
    x0, eps = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), 2.0)
    x_t = add_noise(x0, eps, torch.tensor([0.0, 100.0]))
    torch.testing.assert_close(x_t[0], torch.full((3, 4, 4), 2.5 * math.sqrt(0.5)))
    torch.testing.assert_close(x_t[1], x0[1])


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule(), CosineSchedule(size=256)])
def test_schedules_fall_from_image_to_noise(schedule):
    log_snr = schedule.log_snr(torch.linspace(0, 1, 1000))
    assert (log_snr.diff() <= 0).all()
    assert log_snr[0] > 5 and log_snr[-1] < -9
    assert log_snr.abs().max() <= MAX_LOG_SNR


def test_linear_schedule_is_the_table_of_ddpm():
    table = LinearSchedule().table()
    want = torch.logit(DDPMScheduler(beta_start=1e-4, beta_end=0.02).alphas_cumprod.double())
    torch.testing.assert_close(table, want, rtol=0, atol=2e-3)  # float32 in diffusers
    torch.testing.assert_close(LinearSchedule().log_snr(torch.tensor([0.0, 1.0])), table[[0, -1]])


def test_cosine_schedule_is_the_cosine():
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    alpha, _ = signal_and_noise(CosineSchedule().log_snr(u))
    torch.testing.assert_close(alpha, torch.cos(math.pi * u / 2))


@pytest.mark.parametrize(
    "schedule", [LinearSchedule(), LinearSchedule(num_steps=2000), CosineSchedule(), CosineSchedule(size=128)]
)
def test_betas_rebuild_the_schedule(schedule):
    betas = torch.tensor(betas_of(schedule, 1000), dtype=torch.float64)
    assert betas.min() > 0 and betas.max() < 1
    u = torch.arange(1000, dtype=torch.float64) / 999 if schedule == LinearSchedule() else torch.arange(1, 1001).double() / 1000
    want = schedule.log_snr(u)
    got = torch.logit(torch.cumprod(1 - betas, dim=0))
    held = want > -18  # beyond, the largest beta allowed leaves a little more signal
    torch.testing.assert_close(got[held], want[held], rtol=0, atol=1e-2)


def test_resolution_shift_leaves_the_block_means_of_a_large_image_as_noisy_as_the_small_one():
    rng, factor = torch.Generator().manual_seed(0), 4
    small, log_snr = torch.randn(1, 1, 64, 64, dtype=torch.float64, generator=rng), torch.tensor([1.3], dtype=torch.float64)
    large = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    shifted = resolution_shift(log_snr, 64 * factor)
    noisy = add_noise(large, torch.randn(large.shape, dtype=torch.float64, generator=rng), shifted)

    means = torch.nn.functional.avg_pool2d(noisy, factor) / signal_and_noise(shifted)[0]

    sigma = (means - small).std()
    torch.testing.assert_close(sigma, sigma_of(log_snr)[0], rtol=0.03, atol=0)  # 4096 pixels: 1.1 % standard error


def test_interpolate_meets_the_entries_and_halves_between_them():
    table = torch.tensor([4.0, 2.0, 1.0])
    torch.testing.assert_close(interpolate(table, torch.tensor([0.0, 0.5, 1.0, 2.0])), torch.tensor([4.0, 3.0, 2.0, 1.0]))


def test_sr3_law_is_uniform_in_alpha_bar_inside_each_bin():
    law = SR3Law(beta_start=0.1, beta_end=0.3, num_steps=4)
    alpha_bar = torch.cat([torch.ones(1).double(), torch.cumprod(1 - torch.linspace(0.1, 0.3, 4).double(), 0)])
    inside = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    for i in range(4):
        got = alpha_bar_of(law.log_snr((i + inside) / 4))
        torch.testing.assert_close(got, torch.lerp(alpha_bar[i], alpha_bar[i + 1], inside), rtol=0, atol=1e-6)


def test_the_discrete_sr3_law_draws_each_entry_of_its_table_alike_and_nothing_else():
    law = SR3Law(beta_start=0.1, beta_end=0.3, num_steps=4, discrete=True)
    alpha_bar = torch.cumprod(1 - torch.linspace(0.1, 0.3, 4).double(), 0)
    got = alpha_bar_of(law.log_snr(torch.linspace(0, 1, 101, dtype=torch.float64)[:-1]))
    torch.testing.assert_close(got, alpha_bar.repeat_interleave(25))
    assert law.log_snr(torch.ones(1)) == law.log_snr(torch.tensor([0.99]))
    torch.testing.assert_close(law.schedule().table(), law.log_snr((torch.arange(4) + 0.5) / 4))


def test_cosine_law_is_the_shifted_schedule():
    u = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    torch.testing.assert_close(CosineLaw(size=256).log_snr(u), CosineSchedule().log_snr(u) - 2 * math.log(4))


def test_log_normal_law_has_its_mean_and_std():
    u = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    log_sigma = sigma_of(LogNormalLaw(mean=-1.2, std=1.2).log_snr(u)).log()
    torch.testing.assert_close(log_sigma.mean(), torch.tensor(-1.2).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(log_sigma.std(), torch.tensor(1.2).double(), rtol=0, atol=2e-3)


SAMPLES = 200_000
SHARES = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98], dtype=torch.float64)


def drawn(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Log-SNR of a law drawn as its paper says, by other quantities than the code's."""
    if kind == "log_normal":  # EDM: sigma = exp(N(P_mean, P_std))
        return -2 * np.log(np.exp(rng.normal(-1.2, 1.2, SAMPLES)))
    if kind == "logit-normal":  # SD3: t = sigmoid(N(m, s)), z_t = (1 - t) x0 + t eps
        t = 1 / (1 + np.exp(-rng.normal(0.3, 0.8, SAMPLES)))
        return np.log((1 - t) ** 2 / t**2)
    if kind == "cosine":  # Nichol & Dhariwal: t uniform, alpha = cos(pi t / 2)
        alpha_bar = np.cos(np.pi / 2 * rng.random(SAMPLES)) ** 2
        return np.log(alpha_bar / (1 - alpha_bar))
    alpha_bars = np.append(1, np.cumprod(1 - np.linspace(0.01, 0.1, 50)))  # SR3: t ~ U{1..T}, alpha_bar ~ U(its bin)
    t = rng.integers(1, 51, SAMPLES)
    alpha_bar = rng.uniform(alpha_bars[t], alpha_bars[t - 1])
    return np.log(alpha_bar / (1 - alpha_bar))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("log_normal", {"mean": -1.2, "std": 1.2}),
        ("logit-normal", {"mean": 0.3, "std": 0.8}),  # the same law by another name
        ("cosine", {}),
        ("sr3", {"beta_start": 0.01, "beta_end": 0.1, "num_steps": 50}),
    ],
)
@pytest.mark.parametrize("size", [64, 256])
def test_quantiles_of_a_law_are_those_of_its_draws(kind, settings, size):
    """In units of the quantile's share: 200,000 draws have a standard error of at most 0.0011."""
    draws = drawn(kind, np.random.default_rng(0)) + 2 * math.log(64 / size)
    law = LAWS[kind.replace("logit-normal", "log_normal")](**settings, size=size)
    quantiles = law.log_snr(1 - SHARES)  # u rises with the noise
    below = [float((draws < quantile).mean()) for quantile in quantiles.tolist()]
    assert below == pytest.approx(SHARES.tolist(), abs=0.004)


def test_log_normal_quantiles_are_those_of_another_implementation():
    law = LogNormalLaw(mean=-0.8, std=1.6, size=128)
    want = -2 * stats.norm.ppf(SHARES.numpy(), -0.8, 1.6) - 2 * math.log(2)
    torch.testing.assert_close(law.log_snr(SHARES), torch.from_numpy(want))


@pytest.mark.parametrize("law", [SR3Law(), SR3Law(num_steps=100, beta_end=0.1), CosineLaw(), LogNormalLaw()])
def test_every_law_and_its_schedule_shift_with_the_size(law):
    u = torch.linspace(0.2, 0.8, 7, dtype=torch.float64)
    large = dataclasses.replace(law, size=256)
    for small, shifted in ((law, large), (law.schedule(), large.schedule())):
        torch.testing.assert_close(shifted.log_snr(u), small.log_snr(u) - 2 * math.log(4))


def test_a_shifted_linear_schedule_comes_back_from_its_betas():
    schedule = LinearSchedule(num_steps=200, size=256)
    table = torch.logit(torch.cumprod(1 - torch.tensor(betas_of(schedule, 200), dtype=torch.float64), 0))
    torch.testing.assert_close(table, LinearSchedule(num_steps=200).table() - 2 * math.log(4))


def test_a_law_as_plain_values_makes_itself_again():
    law = SR3Law(num_steps=7)
    values = law_to_dict(law)
    assert values.pop("kind") == "sr3"
    assert SR3Law(**values) == law


@pytest.mark.parametrize(
    "wrong, word",
    [
        (lambda: LinearSchedule(beta_end=1.5), "beta_end=1.5"),
        (lambda: LogNormalLaw(std=0), "positive"),
        (lambda: CosineSchedule().log_snr(torch.tensor([1.2])), r"\[0, 1\]"),
        (lambda: SR3Law().log_snr(torch.tensor([float("nan")])), "nan"),
    ],
)
def test_impossible_settings_are_refused(wrong, word):
    with pytest.raises(ValueError, match=word):
        wrong()
