"""Moving averages of the weights, which are what a trained stage ships. Their lengths are counted in images, not in steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_STD = math.sqrt(1 / 12)
"""Relative width of the mean of all weights since the start, the longest average."""


class MovingAverage:
    """A copy of a network's weights that follows them slowly; how slowly, its subclasses say. `name` is that of its files."""

    name: str

    def __init__(self, network: nn.Module) -> None:
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def kept(self, images_seen: int, batch_size: int) -> float:
        """Share of the average that stays in a step of `batch_size` images that ends at `images_seen`."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, network: nn.Module, images_seen: int, batch_size: int) -> None:
        """Take in the weights after a step of `batch_size` images that ended at `images_seen`."""
        values = list(network.state_dict().values())
        torch._foreach_lerp_(list(self.weights.values()), values, 1 - self.kept(images_seen, batch_size))


class EMA(MovingAverage):
    """Exponential moving average (EDM, arXiv:2206.00364, F.2).

    A weight's share has halved after `half_life` images, which count as at most a share `ramp` of the images seen.
    """

    name = "ema"

    def __init__(self, network: nn.Module, half_life: int, ramp: float) -> None:
        super().__init__(network)
        self.half_life, self.ramp = half_life, ramp

    def kept(self, images_seen: int, batch_size: int) -> float:
        return 0.5 ** (batch_size / min(self.half_life, self.ramp * images_seen))


class PowerAverage(MovingAverage):
    """Average in which the weights after n of N images have a share that rises as n^gamma (EDM2, arXiv:2312.02696, section 3.1).

    Its width grows over the run: `std` is that as a share of the training so far, see `gamma_of`. The random initial weights have
    no share in it from the first step on.
    """

    def __init__(self, network: nn.Module, std: float) -> None:
        super().__init__(network)
        self.std, self.gamma, self.name = std, gamma_of(std), f"power-{std:g}"

    def kept(self, images_seen: int, batch_size: int) -> float:
        """Exact for weights that stay the same during the step (EDM2, Eq. 127)."""
        return (1 - batch_size / images_seen) ** (self.gamma + 1)


def gamma_of(std: float) -> float:
    """Exponent of the power function on [0, 1] whose standard deviation, as a density, is `std` (Eq. 123).

    The largest root of `gamma^3 + 7 gamma^2 + (16 - s) gamma + 12 - s = 0` with `s = std^-2` (EDM2, Eq. 126), by Viete's formula.

    Raises:
        ValueError: if `std` is not in (0, sqrt(1 / 12)], where the exponent is at least 0.
    """
    if not 0 < std <= MAX_STD:
        raise ValueError(f"the relative width of an average is {std:g}, expected more than 0 and at most {MAX_STD:.4f}")
    p, q = std**-2 + 1 / 3, 4 / 3 * std**-2 + 2 / 27  # y^3 - p y + q = 0 for y = gamma + 7 / 3
    y = 2 * math.sqrt(p / 3) * math.cos(math.acos(-1.5 * q / p * math.sqrt(3 / p)) / 3)
    return max(0.0, y - 7 / 3)
