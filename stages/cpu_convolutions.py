"""Convolutions as a CPU runs them fastest: weights laid out once a run as its kernels want them, products in bfloat16 on request.

On maps of 4x4 or 8x8 pixels oneDNN spends as long on rearranging the weights as on the convolution, and a CPU with instructions
for products of bfloat16 (AMX, AVX-512 BF16) makes them several times as fast as those of float32. Its tiles hold 16 pixels of a
row: narrow maps leave most of them empty, and go through a matrix product of all pixels instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

NARROW = 4
"""Pixels of a row up to which a 3x3 convolution in bfloat16 is a matrix product of patches."""


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
    bits. The weights must not change meanwhile. Within another such context of the same networks it changes nothing.

    Args:
        mixed: Mixed precision: convolutions of float32 maps with at least `MIN_CHANNELS` round inputs, weights and results to
            bfloat16, and sum in float32. All else, such as norms and the sums of residual blocks, stays in float32. Does
            nothing on a CPU without the instructions.
    """
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    chosen = [network for network in networks if available and not _compiled(network)]
    modules: list[Any] = [module for network in chosen for module in network.modules()]
    convolutions = [module for module in modules if type(module) in (nn.Conv2d, Pointwise)]
    mine = [convolution for convolution in convolutions if "_conv_forward" not in vars(convolution)]
    for convolution in mine:
        convolution._conv_forward = _Packed(convolution, mixed)
    try:
        yield
    finally:
        for convolution in mine:
            vars(convolution).pop("_conv_forward", None)


def added_to(x: Tensor, convolution: Any, h: Tensor) -> Tensor:
    """`x + convolution(h)`, of maps of one shape; in one pass where the convolution, a module, is packed in their number type."""
    packed = vars(convolution).get("_conv_forward")
    if not isinstance(packed, _Packed):
        made: Tensor = convolution(h)
        return made.add_(x)
    weight = convolution.weight[..., None] if isinstance(convolution, Pointwise) else convolution.weight
    return packed(h, weight, convolution.bias, x)


Run = Callable[[Tensor, Tensor | None], Tensor]


class _Packed:
    """Stands in for a convolution's `_conv_forward`, with the operators that torch.compile uses for frozen weights."""

    def __init__(self, convolution: nn.Conv2d | Pointwise, mixed: bool) -> None:
        self.convolution = convolution
        self.mixed = mixed and min(convolution.in_channels, convolution.out_channels) >= MIN_CHANNELS
        self.runs: dict[tuple[torch.Size, torch.dtype, torch.dtype], Run | None] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None = None) -> Tensor:
        """The convolution of `x`, added to `other`."""
        key = x.shape, x.dtype, weight.dtype
        if not torch.is_grad_enabled() and key not in self.runs:
            self.runs[key] = self._prepared(x, weight, bias)
        run = None if torch.is_grad_enabled() else self.runs[key]
        if run is not None:
            return run(x, other)
        made = type(self.convolution)._conv_forward(self.convolution, x, weight, bias)  # type: ignore[arg-type]
        return made if other is None else made.add_(other)

    def _prepared(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Run | None:
        """What convolves maps of this shape and type; None where packing doesn't pay."""
        products = torch.bfloat16 if self.mixed and x.dtype == torch.float32 and multiplies_bfloat16() else x.dtype
        if not self._pays(x, weight, products):
            return None
        c = self.convolution
        padding, stride, dilation = ([*side] * (2 // len(side)) for side in (c.padding, c.stride, c.dilation))
        geometry: tuple[Any, ...] = (padding, stride, dilation, c.groups)
        weight, bias = weight.to(products), None if bias is None else bias.to(products)
        plain = geometry == ([1, 1], [1, 1], [1, 1], 1) and weight.shape[2:] == (3, 3)
        if plain and products == torch.bfloat16 and x.shape[3] <= NARROW:
            return _of_patches(x.shape, weight, bias)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape))
        convolve, add = torch.ops.mkldnn._convolution_pointwise.default, torch.ops.mkldnn._convolution_pointwise.binary

        def run(x: Tensor, other: Tensor | None) -> Tensor:
            if other is not None and other.dtype == products:
                return add(x, other, packed, bias, *geometry, "add", 1.0, None, [], None)
            made = convolve(x.to(products), packed, bias, *geometry, "none", [], "").to(x.dtype)
            return made if other is None else made.add_(other)

        return run

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


def _of_patches(shape: torch.Size, weight: Tensor, bias: Tensor | None) -> Run:
    """A 3x3 convolution of maps of this shape as the product of their patches, [B * H * W, 9 * C], and the weights."""
    batch, channels, height, width = shape
    pixels = batch * height * width
    matrix = weight.permute(0, 2, 3, 1).reshape(len(weight), 9 * channels)
    packed = torch.ops.mkldnn._reorder_linear_weight(matrix, pixels)
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def run(x: Tensor, other: Tensor | None) -> Tensor:
        padded = F.pad(x.to(weight.dtype).permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        of_image, of_row, of_pixel, _ = padded.stride()
        strides = (of_image, of_row, of_pixel, of_row, of_pixel, 1)
        patches = padded.as_strided((batch, height, width, 3, 3, channels), strides).reshape(pixels, 9 * channels)
        made = multiply(patches, packed, bias, "none", [], "")
        made = made.view(batch, height, width, -1).permute(0, 3, 1, 2).to(x.dtype)
        return made if other is None else made.add_(other)

    return run


def _compiled(network: nn.Module) -> bool:
    """Whether torch.compile has wrapped a part of it, in either way."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in network.modules())
