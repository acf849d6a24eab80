"""Convolutions as a CPU runs them fastest: weights laid out once a run as its kernels want them, products in bfloat16 on request.

On maps of 4x4 or 8x8 pixels oneDNN spends as long on rearranging the weights as on the convolution, and a CPU with instructions
for products of bfloat16 (AMX, AVX-512 BF16) makes them several times as fast as those of float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PIXELS = 256
"""Feature-map pixels of a batch up to which it pays in float32: the more there are, the less the layout of weights weighs."""

MIN_CHANNELS = 32
"""Channels from which a convolution multiplies in bfloat16 in mixed precision. Narrower ones gain little, and begin or end at the
image, where rounding is seen most."""


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))


class Pointwise(nn.Conv1d):
    """A 1x1 convolution of maps [B, C, H, W] whose weight is stored as that of a one-dimensional one."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight[..., None], self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias)


@contextmanager
def packed_convolutions(*networks: nn.Module, mixed: bool = False) -> Iterator[None]:
    """Within it, the networks' convolutions keep their packed weights, the memory of those once more for each shape of input.

    Only float32 on maps of at most `MAX_PIXELS`, and bfloat16 on a CPU that has instructions for it, without gradients; all else
    runs as it always does, and so do compiled networks, and everything where torch has no oneDNN. Results differ in their last
    bits. The weights must not change meanwhile.

    Args:
        mixed: Mixed precision: convolutions of float32 maps with at least `MIN_CHANNELS` round inputs, weights and results to
            bfloat16, and sum in float32. All else, such as norms and the sums of residual blocks, stays in float32. Does
            nothing on a CPU without the instructions.
    """
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    chosen = [network for network in networks if available and not _compiled(network)]
    modules: list[Any] = [module for network in chosen for module in network.modules()]
    convolutions = [module for module in modules if type(module) in (nn.Conv2d, Pointwise)]
    for convolution in convolutions:
        convolution._conv_forward = _Packed(convolution, mixed)
    try:
        yield
    finally:
        for convolution in convolutions:
            vars(convolution).pop("_conv_forward", None)


class _Packed:
    """Stands in for a convolution's `_conv_forward`, with the operators that torch.compile uses for frozen weights."""

    def __init__(self, convolution: nn.Conv2d | Pointwise, mixed: bool) -> None:
        self.convolution = convolution
        self.mixed = mixed and min(convolution.in_channels, convolution.out_channels) >= MIN_CHANNELS
        self.weights: dict[torch.Size, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        products = torch.bfloat16 if self.mixed and x.dtype == torch.float32 and multiplies_bfloat16() else x.dtype
        if torch.is_grad_enabled() or not self._pays(x, weight, products):
            return type(self.convolution)._conv_forward(self.convolution, x, weight, bias)  # type: ignore[arg-type]
        c = self.convolution
        padding, stride, dilation = ([*side] * (2 // len(side)) for side in (c.padding, c.stride, c.dilation))
        geometry = (padding, stride, dilation, c.groups)
        if x.shape not in self.weights:
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight.to(products), *geometry, list(x.shape))
            self.weights[x.shape] = packed, None if bias is None else bias.to(products)
        made = torch.ops.mkldnn._convolution_pointwise(x.to(products), *self.weights[x.shape], *geometry, "none", [], "")
        return made.to(x.dtype)

    def _pays(self, x: Tensor, weight: Tensor, products: torch.dtype) -> bool:
        small = products == torch.bfloat16 or x.ndim == 4 and x.shape[0] * x.shape[2] * x.shape[3] <= MAX_PIXELS
        plain = x.ndim == 4 and x.dtype == weight.dtype and products in (torch.float32, torch.bfloat16)
        here = x.device.type == weight.device.type == "cpu"
        return (
            small
            and plain
            and here
            and self.convolution.padding_mode == "zeros"
            and not isinstance(self.convolution.padding, str)
        )


def _compiled(network: nn.Module) -> bool:
    """Whether torch.compile has wrapped a part of it, in either way."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in network.modules())
