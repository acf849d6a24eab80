"""Muon: the optimizer of hidden matrices, whose steps have orthonormal rows or columns (Jordan et al. 2024)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
RMS = 0.2
"""Root mean square of a step's entries at rate 1: AdamW's, whose rate then fits both (Liu et al. 2025, arXiv:2502.16982)."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest orthogonal matrix by Newton-Schulz iteration. A convolution's matrix has a row per output.

    As `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, for weights of two and more dimensions, all matrices of a shape
    at once. The rate of a group may be a tensor, and `found_inf`, where it is set, is as in `torch.amp.GradScaler`: where that
    tensor is 1, a step changes nothing. No step looks at a value, so that it can be part of a CUDA graph.

    Args:
        params: Weights of at least two dimensions.
        weight_decay: Share of a weight that a step at rate 1 takes away (decoupled).
    """

    found_inf: Tensor | None = None

    def __init__(self, params: Iterable[nn.Parameter], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever run
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes[_matrix(weight, weight).shape].append(weight)
            for weights in shapes.values():
                self._move(weights, group)

    def _move(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Move weights whose matrices are of one shape."""
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [_matrix(self.state[weight]["momentum_buffer"], weight) for weight in weights]
        gradients, momenta = torch.stack([_matrix(weight.grad, weight) for weight in weights]), torch.stack(buffers)
        moved = torch.lerp(momenta, gradients, 1 - MOMENTUM)
        step = orthogonal(torch.lerp(gradients, moved, MOMENTUM)).to(weights[0].dtype)  # Nesterov's momentum
        step = step * (RMS * math.sqrt(max(step.shape[1:]))) * group["lr"]
        decay = group["weight_decay"] * group["lr"]
        if self.found_inf is not None:
            bad = self.found_inf > 0
            moved, step = torch.where(bad, momenta, moved), torch.where(bad, 0.0, step)
            decay = torch.where(bad, 0.0, decay)
        for weight, buffer, momentum, change in zip(weights, buffers, moved, step, strict=True):
            buffer.copy_(momentum)
            _matrix(weight, weight).mul_(1 - decay).sub_(change)


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the orthogonal factor of matrices [N, rows, columns]: five steps of a Newton-Schulz iteration, in bfloat16.

    It moves singular values towards 1, to between about 0.7 and 1.2, and leaves the singular vectors.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _matrix(values: Tensor | None, weight: Tensor) -> Tensor:
    """Values of a weight's shape as a matrix, a row per output; a view where they lie in memory as the weight does."""
    assert values is not None
    channels_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return (values.permute(0, 2, 3, 1) if channels_last else values).flatten(1)
