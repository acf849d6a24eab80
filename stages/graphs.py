"""CUDA graphs: work that is launched hundreds of kernels at a time, recorded once and replayed by one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

EAGER_CALLS = 2
"""How often work of one kind is run before it is recorded: libraries choose and load their kernels there."""

Inputs = Mapping[str, Tensor]
Work = Callable[[dict[str, Tensor]], Tensor]


class Graphs:
    """Runs functions of tensors; on a CUDA device, from the third call of a kind on, as a graph recorded then.

    A kind is what decides which kernels run: the caller's `key`, and the inputs' names, shapes and number types. Its function
    may not look at a value on the device, and what it reads beside its inputs must stay in its place in memory. On other
    devices functions are simply run.

    Args:
        device: Where inputs are moved to, and where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._calls: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, tuple[Callable[[], None], dict[str, Tensor], Tensor]] = {}
        self._pool: Any = None

    def __call__(self, key: Hashable, work: Work, inputs: Inputs) -> Tensor:
        """What `work` makes of the inputs on the device; the same key means the same work. Its result is the caller's."""
        kind = (key, tuple((name, value.shape, value.dtype) for name, value in inputs.items()))
        if self.device.type != "cuda":
            return work({name: value.to(self.device) for name, value in inputs.items()})
        self._calls[kind] += 1
        if self._calls[kind] <= EAGER_CALLS:
            return self._eagerly(work, inputs)
        if kind not in self._recorded:
            self._recorded[kind] = self._record(work, inputs)
        replay, static, output = self._recorded[kind]
        for name, value in inputs.items():
            static[name].copy_(value, non_blocking=True)
        replay()
        return output.clone()

    def _eagerly(self, work: Work, inputs: Inputs) -> Tensor:
        """Run on another stream, as recording does: autograd and libraries keep a stream, which must not be the main one."""
        main, own = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        own.wait_stream(main)
        with torch.cuda.stream(own):
            output = work({name: value.to(self.device, non_blocking=True) for name, value in inputs.items()})
        main.wait_stream(own)
        output.record_stream(main)
        return output

    def _record(self, work: Work, inputs: Inputs) -> tuple[Callable[[], None], dict[str, Tensor], Tensor]:
        static = {name: value.to(self.device, copy=True) for name, value in inputs.items()}
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # others may pin memory meanwhile
            output = work(dict(static))
        self._pool = graph.pool()
        return graph.replay, static, output


_OF_NETWORKS: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Graphs]] = WeakKeyDictionary()


def graphs_of(network: Any) -> Graphs:
    """The graphs of a network, which last as long as its weights stay in their places."""
    first, *_, last = network.parameters()
    places = (first.data_ptr(), last.data_ptr())
    if network not in _OF_NETWORKS or _OF_NETWORKS[network][0] != places:
        _OF_NETWORKS[network] = (places, Graphs(first.device))
    return _OF_NETWORKS[network][1]
