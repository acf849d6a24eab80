"""Heun's method as EDM and JiT published it: against the algorithm written out, and against flows that are known exactly."""

import math
from typing import Any

import pytest
import torch
from references import config_of, network_of, relative_error, stage_of
from torch import Tensor

from cascade.schedulers import SCHEDULERS, scheduler_class
from cascade.stages.published import consistency, edm, edm2, families
from cascade.stages.published.consistency import ConsistencyScheduler
from cascade.stages.published.heun import EDMHeunScheduler, FlowHeunScheduler
from cascade.stages.sampling import Run, nfe, sample


def algorithm_2(
    denoise: Any, noise: Tensor, steps: int, generator: torch.Generator | None, churn: float, s_noise: float
) -> Tensor:
    """EDM's Algorithm 2 in float64, with the published constants otherwise (arXiv:2206.00364)."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    t = [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]
    x = noise.double() * t[0]
    for i in range(steps):
        gamma = min(churn / steps, math.sqrt(2) - 1) if 0.05 <= t[i] <= 50 else 0.0
        t_hat = t[i] + gamma * t[i]
        if gamma > 0:
            draw = torch.randn(x.shape, dtype=torch.float64, generator=generator)
            x = x + math.sqrt(t_hat**2 - t[i] ** 2) * s_noise * draw
        slope = (x - denoise(x, t_hat)) / t_hat
        after = x + (t[i + 1] - t_hat) * slope
        if t[i + 1] != 0:
            slope_after = (after - denoise(after, t[i + 1])) / t[i + 1]
            after = x + (t[i + 1] - t_hat) * (slope / 2 + slope_after / 2)
        x = after
    return x


@pytest.mark.parametrize("family", ["edm", "edm2"])
@pytest.mark.parametrize("steps", [5, 12])
def test_stage_ends_where_the_published_algorithm_does(family: str, steps: int) -> None:
    """With the reference networks, whose single evaluations are those of the original; EDM's with its churn."""
    network, pipeline, labels = network_of(family), stage_of(family), torch.tensor([4])
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return network(x.float(), torch.tensor([sigma], dtype=torch.float32), labels).double()

    churn = (40.0, 1.003) if family == "edm" else (0.0, 1.0)
    expected = algorithm_2(denoise, noise, steps, torch.Generator().manual_seed(7), *churn)
    got = sample(
        pipeline.unet, pipeline.scheduler, noise, steps, class_labels=labels, generator=[torch.Generator().manual_seed(7)]
    )
    assert got.dtype == torch.float32
    assert relative_error(got, expected) < 2e-4


def test_published_steps_are_the_defaults() -> None:
    churning, settings = edm.sampler(config_of("edm"))
    assert [churning.config[name] for name in ("s_churn", "s_min", "s_max", "s_noise")] == [40, 0.05, 50, 1.003]
    assert settings["num_inference_steps"] == 256 and nfe(churning, 256) == 511
    assert edm2.sampler(config_of("edm2"))[0].config["s_churn"] == 0
    assert nfe(*[edm2.sampler(config_of("edm2"))[0], 32]) == 63
    teacher = families.family_of("consistency").known("edm_imagenet64_ema.pt")
    assert teacher is not None
    scheduler, settings = consistency.sampler(teacher.config)
    assert (
        isinstance(scheduler, EDMHeunScheduler) and scheduler.config["s_churn"] == 0 and settings == {"num_inference_steps": 40}
    )


class Gaussian:
    """The ideal denoiser of data N(0, std^2); knows no class."""

    prediction_type, num_classes, null_label, learned_variance, std = "sample", None, None, False, 0.5

    def __call__(self, x_t: Tensor, log_snr: Tensor, *_: Any) -> Tensor:
        alpha2 = torch.sigmoid(log_snr).view(-1, 1, 1, 1)
        return x_t * alpha2.sqrt() * self.std**2 / (alpha2 * self.std**2 + 1 - alpha2)


@pytest.mark.parametrize("scheduler", [EDMHeunScheduler(), FlowHeunScheduler(), FlowHeunScheduler(noise_scale=2.0)])
def test_error_falls_with_the_square_of_the_steps(scheduler: Any) -> None:
    """The flow of Gaussian data multiplies its start by std / (std at the start)."""
    noise = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    share = Gaussian.std / math.hypot(80, Gaussian.std) * 80 if isinstance(scheduler, EDMHeunScheduler) else Gaussian.std
    errors = [relative_error(sample(Gaussian(), scheduler, noise, steps), share * noise) for steps in (20, 40, 80)]
    assert errors[2] < 3e-3
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 1.8 < math.log2(coarse / fine) < 2.6


def test_churn_adds_noise_and_keeps_the_data() -> None:
    """Denoised by the ideal denoiser, noise that is added again and again leaves the pixels with the std of the data."""
    noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = EDMHeunScheduler(s_churn=20, s_min=0.01, s_max=50, s_noise=1.0)
    ends = [sample(Gaussian(), scheduler, noise, 40, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    plain = sample(Gaussian(), EDMHeunScheduler(), noise, 40)
    assert (ends[0] - ends[1]).std() == pytest.approx(math.sqrt(2) * Gaussian.std, rel=0.05)  # nothing in common
    for end in (*ends, plain):
        assert end.std() == pytest.approx(Gaussian.std, rel=0.05)


def test_noise_levels_are_evaluated_in_order() -> None:
    run = Run.of(EDMHeunScheduler(s_churn=40, s_max=50), 8)
    assert len(run.scheduler.timesteps) == 15 and torch.equal(run.noise, run.scheduler.times)
    assert run.noise[0] == pytest.approx(80) and run.noise[-1] == pytest.approx(0.002)
    lifted = run.noise[2] / EDMHeunScheduler().path(8)[1]
    assert lifted == pytest.approx(1.0) if run.noise[1] > 50 else lifted == pytest.approx(math.sqrt(2))
    torch.testing.assert_close(run.image, torch.ones(15, dtype=torch.float64))
    flow = Run.of(FlowHeunScheduler(noise_scale=2.0), 2)
    torch.testing.assert_close(flow.image, torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64))
    torch.testing.assert_close(flow.noise, torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))


def test_one_step_is_the_denoised_image_and_churn_at_the_start_is_refused() -> None:
    noise = torch.randn(1, 3, 4, 4)
    expected = noise * 80 * 0.25 / (0.25 + 80**2)
    torch.testing.assert_close(sample(Gaussian(), EDMHeunScheduler(), noise, 1), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="s_max is 100, expected less than sigma_max, 80"):
        EDMHeunScheduler(s_churn=1, s_max=100)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_can_take_the_place_of_ours(name: str) -> None:
    noise = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for ours in (EDMHeunScheduler(s_churn=40), FlowHeunScheduler(), ConsistencyScheduler()):
        other = scheduler_class(name).from_config(ours.config)
        end = sample(Gaussian(), other, noise, 25, generator=torch.Generator().manual_seed(1))
        assert end.std() == pytest.approx(Gaussian.std, rel=0.3)  # first order: coarse
