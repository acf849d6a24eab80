"""Flow maps: steps of any width at once, for the exact flow of Gaussian data, through the loop and diffusers' own scheduler."""

import math
from typing import Any

import pytest
import torch
from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from cascade.stages.denoiser import Denoiser, FlowMapGuidance
from cascade.stages.sampling import sample

STD = 0.3


class GaussianFlow:
    """The exact average velocity of data N(0, STD^2), whose flow keeps every pixel at as many deviations as it begins with."""

    prediction_type, num_classes, null_label, learned_variance, flow_map = "sample", None, None, False, True

    def __init__(self) -> None:
        self.seen: list[tuple[float, float | None, float, Any]] = []

    def __call__(self, x_t: Tensor, log_snr: Tensor, *inputs: Any) -> Tensor:
        *_, end, scale, interval = inputs
        levels = [log_snr[0].item(), (log_snr if end is None else end)[0].item()]
        t, r = (1.0 if level < -15 else 1 / (1 + math.exp(level / 2)) for level in levels)
        self.seen.append((t, None if end is None else r, scale, interval))
        z, std = x_t * math.hypot(1 - t, t), lambda time: math.hypot((1 - time) * STD, time)
        if end is None:  # what a denoiser of these data predicts: E[x0 | z]
            return z * (1 - t) * STD**2 / std(t) ** 2
        return (z * std(r) / std(t) - r / t * z) / (1 - r / t)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_exact_flow_map_ends_at_the_same_picture_in_any_number_of_steps(steps: int) -> None:
    noise, flow = torch.randn(2, 3, 4, 4, dtype=torch.float64), GaussianFlow()
    end = sample(FlowMapGuidance(flow, 3.0, (0.1, 2.0)), FlowMapEulerDiscreteScheduler(), noise, steps)
    torch.testing.assert_close(end, STD * noise, rtol=1e-6, atol=1e-9)
    assert [seen[2:] for seen in flow.seen] == [(3.0, (0.1, 2.0))] * steps
    torch.testing.assert_close([seen[:2] for seen in flow.seen], [(1 - i / steps, 1 - (i + 1) / steps) for i in range(steps)])


def test_shift_is_the_scale_of_the_noise() -> None:
    """`(1 - t) x0 + t s eps` at times t evenly from 1 to 0 has log-SNR 2 ln((1 - t) / (s t))."""
    flow, scale, noise = GaussianFlow(), 4.0, torch.randn(1, 3, 4, 4, dtype=torch.float64)
    sample(FlowMapGuidance(flow, 1.0), FlowMapEulerDiscreteScheduler(shift=scale), noise, 4)
    shares = [scale * t / (1 - t + scale * t) for t in (1.0, 0.75, 0.5, 0.25)]
    torch.testing.assert_close([seen[0] for seen in flow.seen], shares)


def test_under_a_scheduler_of_another_kind_it_is_a_denoiser() -> None:
    """First order: 40 steps come as near as Euler's method does, and no step's end is given."""
    noise, flow = torch.randn(2, 3, 4, 4, dtype=torch.float64), GaussianFlow()
    end = sample(FlowMapGuidance(flow, 1.0), FlowMatchEulerDiscreteScheduler(), noise, 200)
    assert all(seen[1] is None for seen in flow.seen)
    torch.testing.assert_close(end, STD * noise, rtol=0.03, atol=0.0)


def test_flow_map_guidance_is_a_denoiser_and_refuses_what_it_cannot_see() -> None:
    assert isinstance(FlowMapGuidance(GaussianFlow(), 1.0), Denoiser)
    with pytest.raises(ValueError, match="guidance_scale is 0, expected more than 0"):
        FlowMapGuidance(GaussianFlow(), 0)
    with pytest.raises(ValueError, match="is empty"):
        FlowMapGuidance(GaussianFlow(), 1.0, (2.0, 1.0))
