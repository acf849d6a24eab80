"""The moving average of the weights, which is what a trained stage ships."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a network's weights, its length counted in images (EDM, arXiv:2206.00364, F.2).

    Args:
        network: Whose weights are followed.
        half_life: Images after which a weight's share has halved.
        ramp: The half-life is at most this share of the images seen.
    """

    def __init__(self, network: nn.Module, half_life: int, ramp: float) -> None:
        self.half_life, self.ramp = half_life, ramp
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, images_seen: int, batch_size: int) -> None:
        """Take in the weights after a step of `batch_size` images that ended at `images_seen`."""
        half_life = min(self.half_life, self.ramp * images_seen)
        decay = 0.5 ** (batch_size / half_life)
        values = list(network.state_dict().values())
        torch._foreach_lerp_(list(self.weights.values()), values, 1 - decay)
