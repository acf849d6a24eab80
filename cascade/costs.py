"""What an image costs: evaluations of each network and multiply-adds, counted while an image is made without the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from cascade.pipeline import CascadePipeline
from cascade.stage_sampling import Sampling
from cascade.stages.unet import UNet


@dataclass
class _Count:
    """Evaluations of one network for one image, and the multiply-adds of all."""

    evaluations: int = 0
    multiply_adds: int = 0


def cost_of(cascade: CascadePipeline, size: int, sampling: Sampling | None = None) -> dict[str, dict[str, int]]:
    """NFE and multiply-adds per image, by stage.

    One image is made in which every network is really run once only, or once at each of the sizes at which it denoises; further
    calls are counted and answered with zeros. So guidance, its interval, schedulers with two evaluations per step and
    autoguidance's second network are counted as they run.

    For each stage that runs, up to the one that makes images of side `size`: `{"nfe": ..., "multiply_adds": ...}`. A guided step
    counts two evaluations. A foreign base whose network can't be watched is left out. Multiply-adds are half of torch's count of
    floating-point operations.
    """
    counts: dict[str, list[_Count]] = {}
    with ExitStack() as stack:
        for name, stage in cascade.stages.items():
            networks = [getattr(stage, part, None) for part in ("unet", "guide_unet")]
            watched = [network for network in networks if isinstance(network, nn.Module)]
            counts[name] = [stack.enter_context(_counted(network)) for network in watched]
        label = None if cascade.num_classes is None else [0]
        cascade(class_labels=label, seeds=[0], size=size, sampling=sampling, batch_size=1, output_type="pt")
    costs = {}
    for name, found in counts.items():
        if nfe := sum(count.evaluations for count in found):
            costs[name] = {"nfe": nfe, "multiply_adds": sum(count.multiply_adds for count in found)}
    return costs


def operation_counter() -> FlopCounterMode:
    """torch's counter of floating-point operations, with the fused attention of CPUs, which it leaves out."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: attention})


@contextmanager
def _counted(network: nn.Module) -> Iterator[_Count]:
    """The network replaced by one that really runs at the first call of each cost only."""
    count, real = _Count(), network.forward
    kept: dict[bool, tuple[Any, int]] = {}
    before = vars(network).get("forward")  # accelerate's hooks put one there

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        count.evaluations += len(x)
        coarse = network.coarse(args[0], x.shape[-1]) if isinstance(network, UNet) else None
        at_half_size = coarse is not None and bool(coarse.all())
        if at_half_size not in kept:
            seen = x * 1 if x.requires_grad else x  # the counter can't take the gradient of what was not computed
            with operation_counter() as counter:
                output = real(seen, *args, **kwargs)
                if x.requires_grad:  # a classifier, which guides by its gradient
                    torch.autograd.grad(output.sum(), seen)
            kept[at_half_size] = output, counter.get_total_flops() // 2 // len(x)
        output, multiply_adds = kept[at_half_size]
        count.multiply_adds += len(x) * multiply_adds
        return _zeros(output, len(x)) + 0 * x.sum() if x.requires_grad else _zeros(output, len(x))

    network.forward = forward  # type: ignore[method-assign,assignment]  # counts until it is put back
    try:
        with torch.no_grad():
            yield count
    finally:
        del network.forward
        if before is not None:
            network.forward = before


def _zeros(output: Any, rows: int) -> Any:
    """Zeros of the output's kind for a batch of another size."""
    kind: Callable[..., Any] = type(output)
    if isinstance(output, Tensor):
        return output.new_zeros((rows, *output.shape[1:]))
    if isinstance(output, tuple):
        return tuple(_zeros(part, rows) for part in output)
    return kind(**{name: _zeros(part, rows) for name, part in output.items()})  # diffusers' BaseOutput
