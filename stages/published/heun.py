"""Heun's method as EDM and JiT were published: on exact times of their own, in their own scale of the noisy image.

Both solve `dx / dtime = (x - x0) / time` from noise (the largest time) to the image (time 0): by the slope at the beginning of a
step, then by the mean of that and the slope at its end; the last step has the first slope only.
"""

import math

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class HeunScheduler(SchedulerMixin, ConfigMixin):
    """Heun's method on the times that a class derived from this says: `path`, the `amplitudes` at them, and `churned`.

    It is evaluated twice in every step but the last, and expects denoised images.
    """

    order = 2
    churn_scale = 1.0
    times: Tensor

    def path(self, num_inference_steps: int) -> Tensor:
        """Times between steps, float64 [num_inference_steps + 1], falling to 0."""
        raise NotImplementedError

    def churned(self, starts: Tensor) -> Tensor:
        """Times up to which noise is added before each step that begins at `starts`."""
        return starts

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the steps; `times` are those of all evaluations, float64 [2 num_inference_steps - 1]."""
        path = self.path(num_inference_steps)
        starts = self.churned(path[:-1])
        self.times = torch.cat([torch.stack([starts[:-1], path[1:-1]], dim=1).flatten(), starts[-1:]])
        self.timesteps = self.times.float().to(device)
        self.step_index = 0
        self.begun: tuple[Tensor, Tensor] | None = None

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> SchedulerOutput:
        """The noisy image at the next evaluation, from the denoised one `model_output` at this one."""
        i, last = self.step_index, len(self.times) - 1
        self.step_index += 1
        time, after = float(self.times[i]), float(self.times[i + 1]) if i < last else 0.0
        slope = (sample - model_output) / time
        if self.begun is None:
            self.begun = (sample, slope)
            return SchedulerOutput(prev_sample=sample + (after - time) * slope)
        (start, first), self.begun = self.begun, None
        x = start + (time - float(self.times[i - 1])) * (first + slope) / 2
        if after > time:
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + math.sqrt(after**2 - time**2) * self.churn_scale * noise
        return SchedulerOutput(prev_sample=x)


class EDMHeunScheduler(HeunScheduler):
    """EDM's sampler, whose time is sigma, in float64 (Karras et al. 2022, arXiv:2206.00364, Algorithms 1 and 2).

    Args:
        sigma_min, sigma_max, rho: Noise levels lie evenly between these two in `sigma^(1/rho)`, then 0.
        s_churn: Noise added before each step, shared out among all of them; 0 = deterministic.
        s_min, s_max: Noise is added where sigma lies between these two; ValueError unless `s_max` is below `sigma_max`.
        s_noise: Its std, relative to what would keep the noise as large as sigma says.
    """

    in_float64 = True

    @register_to_config
    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        s_churn: float = 0.0,
        s_min: float = 0.05,
        s_max: float = 50.0,
        s_noise: float = 1.0,
        prediction_type: str = "sample",
    ) -> None:
        if s_churn and s_max >= sigma_max:
            raise ValueError(f"s_max is {s_max:g}, expected less than sigma_max, {sigma_max:g}: a run begins as pure noise")
        self.churn_scale = s_noise
        self.set_timesteps(18)

    def path(self, num_inference_steps: int) -> Tensor:
        high, low = (self.config[name] ** (1 / self.config["rho"]) for name in ("sigma_max", "sigma_min"))
        places = torch.arange(num_inference_steps, dtype=torch.float64) / max(num_inference_steps - 1, 1)
        return torch.cat([(high + places * (low - high)) ** self.config["rho"], torch.zeros(1, dtype=torch.float64)])

    def churned(self, starts: Tensor) -> Tensor:
        share = min(self.config["s_churn"] / len(starts), math.sqrt(2) - 1)
        within = (starts >= self.config["s_min"]) & (starts <= self.config["s_max"])
        return torch.where(within, starts * (1 + share), starts)

    @property
    def amplitudes(self) -> tuple[Tensor, Tensor]:
        """Of x0 and eps in the noisy image at each evaluation: 1 and sigma, float64."""
        return torch.ones_like(self.times), self.times


class FlowHeunScheduler(HeunScheduler):
    """JiT's sampler: time runs evenly from 1 to 0 in `(1 - time) x0 + time * noise_scale * eps` (arXiv:2511.13720).

    Args:
        noise_scale: Std of the noise at time 1.
    """

    @register_to_config
    def __init__(self, noise_scale: float = 1.0, prediction_type: str = "sample") -> None:
        self.set_timesteps(50)

    def path(self, num_inference_steps: int) -> Tensor:
        return 1 - torch.linspace(0, 1, num_inference_steps + 1).double()  # rounded as the authors' own

    @property
    def amplitudes(self) -> tuple[Tensor, Tensor]:
        """Of x0 and eps in the noisy image at each evaluation, float64."""
        return 1 - self.times, self.config["noise_scale"] * self.times
