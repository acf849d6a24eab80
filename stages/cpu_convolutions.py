"""Weights of convolutions on small feature maps, laid out once a run as a CPU's kernels want them instead of at every call.

On maps of 4x4 or 8x8 pixels oneDNN spends as long on rearranging the weights as on the convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MAX_PIXELS = 256
"""Feature-map pixels of a batch up to which it pays; the time of a convolution grows with them, that of the weights does not."""


@contextmanager
def packed_convolutions(*networks: nn.Module) -> Iterator[None]:
    """Within it, the networks' convolutions keep their packed weights, the memory of those once more for each shape of input.

    Only float32 on a CPU, without gradients and on maps of at most `MAX_PIXELS`; all else runs as it always does, and so do
    compiled networks, and everything where torch has no oneDNN. Results differ in their last bits. The weights must not change
    meanwhile.
    """
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    chosen = [network for network in networks if available and not _compiled(network)]
    convolutions = [module for network in chosen for module in network.modules() if type(module) is nn.Conv2d]
    for convolution in convolutions:
        convolution._conv_forward = _Packed(convolution)  # type: ignore[method-assign, assignment]  # for a while, see below
    try:
        yield
    finally:
        for convolution in convolutions:
            vars(convolution).pop("_conv_forward", None)


class _Packed:
    """Stands in for `nn.Conv2d._conv_forward`, with the operators that torch.compile uses for frozen weights."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution
        self.weights: dict[torch.Size, Tensor] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() or not self._pays(x, weight):
            return nn.Conv2d._conv_forward(self.convolution, x, weight, bias)
        c = self.convolution
        geometry = (list(c.padding), list(c.stride), list(c.dilation), c.groups)
        if x.shape not in self.weights:
            self.weights[x.shape] = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, self.weights[x.shape], bias, *geometry, "none", [], "")

    def _pays(self, x: Tensor, weight: Tensor) -> bool:
        small = x.ndim == 4 and x.shape[0] * x.shape[2] * x.shape[3] <= MAX_PIXELS
        plain = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
        return small and plain and self.convolution.padding_mode == "zeros" and not isinstance(self.convolution.padding, str)


def _compiled(network: nn.Module) -> bool:
    """Whether torch.compile has wrapped a part of it, in either way."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in network.modules())
