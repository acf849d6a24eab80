"""The noise language: every quantity of the diffusion process, derived from the log-SNR.

A noisy image is `x_t = alpha * x0 + sigma_vp * eps` with `alpha^2 + sigma_vp^2 = 1` (variance preserving). One number says how
noisy it is: `log_snr = ln(alpha^2 / sigma_vp^2)`, large and positive for a clean image (Kingma et al. 2021, arXiv:2107.00630, who
write gamma for its negative). A *schedule* maps time in [0, 1] to log_snr; a *law* draws the log_snr of a training example.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

MAX_LOG_SNR = 20.0
"""Schedules are cut to [-MAX_LOG_SNR, MAX_LOG_SNR]: beyond it float32 can't tell the image from its noisy version."""


def signal_and_noise(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitudes (alpha, sigma_vp) of image and noise; their squares sum to 1. Both have the shape of `log_snr`."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def alpha_bar_of(log_snr: Tensor) -> Tensor:
    """Share of signal variance left, in [0, 1]; SR3 calls it gamma, diffusers `alphas_cumprod`."""
    return torch.sigmoid(log_snr)


def log_snr_of_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """Log-SNR where a share `alpha_bar` in [0, 1] of the variance is signal; infinite at the ends."""
    return torch.logit(alpha_bar)


def sigma_of(log_snr: Tensor) -> Tensor:
    """Noise std at unit signal, EDM's sigma of `x_t / alpha` (Karras et al. 2022, arXiv:2206.00364)."""
    return torch.exp(-log_snr / 2)


def detail_log_snr(log_snr: Tensor, std: float) -> Tensor:
    """Log-SNR of details of this std in images of `log_snr`, whose own variance is taken for 1: `log_snr + 2 ln std`."""
    return log_snr + 2 * math.log(std)


def like_image(values: Tensor, image: Tensor) -> Tensor:
    """Per-image values [B] as [B, 1, 1, 1] in the number type of `image`, ready to multiply it."""
    return values.to(image).view(-1, *[1] * (image.ndim - 1))


def add_noise(x0: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """Noisy image `alpha * x0 + sigma_vp * eps` (Ho et al. 2020, arXiv:2006.11239, Eq. 4).

    Args:
        x0: Images in [-1, 1], [B, C, H, W].
        eps: Unit Gaussian noise, shape of `x0`.
        log_snr: One per image, [B].
    """
    alpha, sigma_vp = signal_and_noise(log_snr)
    return like_image(alpha, x0) * x0 + like_image(sigma_vp, x0) * eps


def resolution_shift(log_snr: Tensor, size: int, reference_size: int = 64) -> Tensor:
    """Log-SNR that hides as much of a `size` image as `log_snr` hides of a `reference_size` one.

    Averaging blocks of k x k pixels lowers the variance of their noise k^2 times, so at k times the resolution the log-SNR has to
    be 2 ln k lower for the same destruction (Hoogeboom et al. 2023, arXiv:2301.11093, section 2.1).
    """
    return log_snr + 2 * math.log(reference_size / size)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearSchedule:
    """DDPM's schedule: `num_steps` variances beta rising linearly (Ho et al. 2020, arXiv:2006.11239, section 4).

    Time u in [0, 1] indexes the table of alpha_bar, linear in log-SNR between entries; u = 0 is the least noisy step. `size` > 64
    lowers the log-SNR as `resolution_shift` says; 64 leaves the table as published.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_steps: int = 1000
    size: int = 64

    def __post_init__(self) -> None:
        if not (0 < self.beta_start <= self.beta_end < 1 and self.num_steps > 1):
            raise ValueError(
                f"a linear schedule needs 0 < beta_start <= beta_end < 1 and num_steps > 1, got beta_start={self.beta_start},"
                f" beta_end={self.beta_end}, num_steps={self.num_steps}"
            )

    def table(self) -> Tensor:
        """Log-SNR of every step, float64 [num_steps], falling."""
        betas = torch.linspace(self.beta_start, self.beta_end, self.num_steps, dtype=torch.float64)
        return resolution_shift(log_snr_of_alpha_bar(torch.cumprod(1 - betas, dim=0)), self.size)

    def log_snr(self, u: Tensor) -> Tensor:
        """Log-SNR at time `u` in [0, 1], same shape, float64."""
        return interpolate(self.table(), _check_time(u).double() * (self.num_steps - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class CosineSchedule:
    """`alpha = cos(pi u / 2)` (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17, without its offset), shifted for large images.

    `size` > 64 lowers the log-SNR as `resolution_shift` says; 64 leaves the plain cosine schedule.
    """

    size: int = 64

    def log_snr(self, u: Tensor) -> Tensor:
        """Log-SNR at time `u` in [0, 1], same shape, float64, cut to +-MAX_LOG_SNR."""
        angle = _check_time(u).double() * (math.pi / 2)
        plain = -2 * torch.log(torch.tan(angle).clamp(min=1e-12))
        return resolution_shift(plain, self.size).clamp(-MAX_LOG_SNR, MAX_LOG_SNR)


Schedule = LinearSchedule | CosineSchedule


def interpolate(table: Tensor, position: Tensor) -> Tensor:
    """Entries of a 1-D `table` at fractional `position` in [0, len - 1], linear between them, on the device of `position`."""
    table = table.to(position.device)
    low = position.floor().clamp(0, len(table) - 2).long()
    return torch.lerp(table[low], table[low + 1], (position - low).to(table))


def betas_of(schedule: Schedule, num_steps: int = 1000) -> list[float]:
    """The schedule as `num_steps` variances for a diffusers scheduler's `trained_betas`.

    Step t = 0 .. num_steps - 1 has the log-SNR of time (t + 1) / num_steps, except for a linear schedule of the same length,
    whose own table is returned. Each beta is at most 0.9999 so that some signal is left at the last step.
    """
    if isinstance(schedule, LinearSchedule) and schedule.num_steps == num_steps:
        log_snr = schedule.table()
    else:
        log_snr = schedule.log_snr(torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar_of(log_snr)])
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(1e-8, 0.9999).tolist()


@dataclass(frozen=True, kw_only=True, slots=True)
class SR3Law:
    """SR3's training law (Saharia et al. 2021, arXiv:2104.07636, section 2.4): a bin of the schedule, uniform alpha_bar in it.

    With `t ~ U{1..T}`, alpha_bar is uniform between `alpha_bar_{t-1}` and `alpha_bar_t` (`alpha_bar_0 = 1`), so the network meets
    every noise level and the steps at sampling time are free. `discrete` draws `alpha_bar_t` itself, as DDPM does, whose T levels
    are then all that the network meets. `size` shifts it for images larger than 64; SR3 does not.
    """

    kind: ClassVar[str] = "sr3"
    beta_start: float = 1e-6
    beta_end: float = 0.01
    num_steps: int = 2000
    size: int = 64
    discrete: bool = False

    def log_snr(self, u: Tensor) -> Tensor:
        """Log-SNR drawn by uniform numbers `u` in [0, 1), same shape, float64: integer part = the bin, rest = the place in it."""
        schedule = LinearSchedule(beta_start=self.beta_start, beta_end=self.beta_end, num_steps=self.num_steps)
        edges = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar_of(schedule.table())])
        position = _check_time(u).double() * self.num_steps
        if self.discrete:
            position = (position.floor() + 1).clamp(max=self.num_steps)
        alpha_bar = interpolate(edges, position)
        return resolution_shift(log_snr_of_alpha_bar(alpha_bar), self.size).clamp(-MAX_LOG_SNR, MAX_LOG_SNR)

    def schedule(self) -> Schedule:
        """The schedule that a stage trained under this law is sampled with by default: the same table."""
        return LinearSchedule(beta_start=self.beta_start, beta_end=self.beta_end, num_steps=self.num_steps, size=self.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class CosineLaw:
    """Time uniform in [0, 1] under the cosine schedule, shifted for images larger than 64 (`resolution_shift`)."""

    kind: ClassVar[str] = "cosine"
    size: int = 64

    def log_snr(self, u: Tensor) -> Tensor:
        """Log-SNR drawn by uniform numbers `u` in [0, 1), same shape, float64."""
        return self.schedule().log_snr(u)

    def schedule(self) -> Schedule:
        """The schedule that a stage trained under this law is sampled with by default: the same one."""
        return CosineSchedule(size=self.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogNormalLaw:
    """`ln sigma ~ N(mean, std^2)` (Karras et al. 2022, arXiv:2206.00364, table 1: P_mean, P_std), for data of any scale.

    It is the logit-normal law of flow matching too: where `z_t = (1 - t) x0 + t eps`, sigma is `t / (1 - t)`, so `ln sigma` is
    `logit t`, and `t = sigmoid(N(mean, std^2))` (Esser et al. 2024, arXiv:2403.03206, section 3.1) draws the same noise by the
    same two numbers. Where t runs from noise to image (JiT, arXiv:2511.13720), `mean` has the other sign. `size` shifts the law
    for images larger than 64 (`resolution_shift`).
    """

    kind: ClassVar[str] = "log_normal"
    mean: float = -0.8
    std: float = 1.6
    size: int = 64

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std of the log-normal law must be positive, got {self.std}")

    def log_snr(self, u: Tensor) -> Tensor:
        """Log-SNR drawn by uniform numbers `u` in [0, 1), same shape, float64: the normal quantile of `u`."""
        normal = torch.special.ndtri(_check_time(u).double().clamp(1e-9, 1 - 1e-9))
        return resolution_shift(-2 * (self.mean + self.std * normal), self.size).clamp(-MAX_LOG_SNR, MAX_LOG_SNR)

    def schedule(self) -> Schedule:
        """The schedule that a stage trained under this law is sampled with by default, as the law itself has no ends: cosine."""
        return CosineSchedule(size=self.size)


NoiseLaw = SR3Law | CosineLaw | LogNormalLaw

LAWS: dict[str, type[NoiseLaw]] = {law.kind: law for law in (CosineLaw, SR3Law, LogNormalLaw)}
"""Laws by the `kind` that a recipe names."""


def law_to_dict(law: NoiseLaw) -> dict[str, Any]:
    """The law as plain values, with its `kind`."""
    return {"kind": law.kind, **asdict(law)}


def _check_time(u: Tensor) -> Tensor:
    """`u`, looked at on a CPU only: a look at an accelerator's values would wait for it."""
    if u.device.type == "cpu" and u.numel() and not (u.min() >= 0 and u.max() <= 1):
        raise ValueError(f"time must lie in [0, 1], got [{u.min():g}, {u.max():g}]")
    return u
