"""What a run measures of itself between two reports: loss, loss by noise level, gradient norm, rate, speed and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from cascade.stages.training.recipe import REGRESSION, Phase, Recipe

LOG_EVERY = 50
"""Steps between two reports."""

SHORTEST_PAUSE = 0.01
"""Seconds."""

LEVEL_EDGES = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)
"""Log-SNR at which the bins of the loss by noise level meet: the same for every law, size and run, so that curves compare."""

LEVELS = tuple(
    f"{'below' if low is None else f'{low:g} to' if high is not None else 'above'} {low if high is None else high:g}"
    for low, high in zip((None, *LEVEL_EDGES), (*LEVEL_EDGES, None), strict=True)
)
"""Names of the bins, most noise first."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run says of its progress: averages over all processes and all examples since the report before.

    images_seen: Training images so far, all processes together.
    total_images: Those of the whole recipe.
    size: Side of the images in this phase.
    loss: Weighted loss of an example; NaN if no step since the last report had a finite one.
    loss_by_log_snr: The same within each bin of log-SNR that examples fell into, by the bin's name (`LEVELS`);
        none for a regression, which has no noise levels.
    gradient_norm: Before clipping; NaN if no step had a finite one.
    learning_rate: Of the next step.
    images_per_second: Of all processes, waiting for data included; checkpoints, validation and samples excluded.
    memory_gib: Peak of the accelerator's memory since the start, else the process's resident memory; of the largest process.
    skipped_steps: Steps since the last report whose gradient was not finite.
    damaged_pictures: Examples since the last report whose own picture was damaged, so that another stood in.
    """

    images_seen: int
    total_images: int
    size: int
    loss: float
    loss_by_log_snr: dict[str, float]
    gradient_norm: float
    learning_rate: float
    images_per_second: float
    memory_gib: float
    skipped_steps: int
    damaged_pictures: int


class Meter:
    """Gathers the figures of a `Report`. Sums stay on the device until a report is due, so that no step waits for them.

    `gather` stacks a tensor of every process along a new first axis; all of them call it at the same steps.
    """

    def __init__(self, recipe: Recipe, images_seen: int, gather: Callable[[Tensor], Tensor] = lambda own: own[None]) -> None:
        self.recipe, self.gather = recipe, gather
        self._by_level, self._norms = torch.zeros(2, len(LEVELS)), torch.zeros(2)
        self.pauses: list[float] = []
        """Seconds of each pause of at least SHORTEST_PAUSE."""
        self._begin(images_seen)

    def observe(self, losses: Tensor, log_snr: Tensor, damaged: int = 0) -> None:
        """Take in this process's examples of a step: loss, unless it is NaN, and noise level, [B], and how many were damaged."""
        losses, finite = losses.detach().float(), losses.isfinite()
        bins = torch.bucketize(log_snr, log_snr.new_tensor(LEVEL_EDGES), right=True).to(losses.device, non_blocking=True)
        self._damaged += damaged
        both = torch.stack([losses.where(finite, 0), finite.float()])
        self._by_level = self._by_level.to(losses, non_blocking=True).index_add(1, bins, both)

    def step(self, norm: Tensor, images_seen: int, phase: Phase, close: bool = False) -> Report | None:
        """Take in the end of a step with this gradient norm; the report, if one is due.

        `close` asks for one now, as a checkpoint does: the run that goes on from there then reports what an unbroken one would.
        """
        finite = norm.isfinite()
        self._norms = self._norms.to(norm, non_blocking=True) + torch.stack([norm.where(finite, 0), finite.to(norm)])
        self._steps += 1
        if self._steps < LOG_EVERY and not close and images_seen < self.recipe.total_images:
            return None
        report = self._report(images_seen, phase, time.monotonic() - self._since)
        self._begin(images_seen)
        return report

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count as time spent on training."""
        begun = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - begun
            self._since += seconds
            if seconds > SHORTEST_PAUSE:
                self.pauses.append(seconds)

    def _begin(self, images_seen: int) -> None:
        self._by_level, self._norms = torch.zeros_like(self._by_level), torch.zeros_like(self._norms)
        self._steps, self._damaged, self._images_before = 0, 0, images_seen
        self._since = time.monotonic()

    def _report(self, images_seen: int, phase: Phase, seconds: float) -> Report:
        others = self._by_level.new_tensor([self._damaged, memory_gib(self._by_level.device)])
        mine = torch.cat([self._by_level.flatten(), self._norms.to(self._by_level), others])
        everyone = self.gather(mine).double().cpu()
        *sums, _ = everyone.sum(0).tolist()
        by_level = self.recipe.objective.kind != REGRESSION  # which has no noise levels
        losses, counts, (norms, steps, damaged) = sums[: len(LEVELS)], sums[len(LEVELS) : -3], sums[-3:]
        return Report(
            images_seen=images_seen,
            total_images=self.recipe.total_images,
            size=phase.size,
            loss=_mean(sum(losses), sum(counts)),
            loss_by_log_snr={name: loss / n for name, loss, n in zip(LEVELS, losses, counts, strict=True) if n and by_level},
            gradient_norm=_mean(norms, steps),
            learning_rate=self.recipe.learning_rate_at(images_seen),
            images_per_second=(images_seen - self._images_before) / max(seconds, 1e-9),
            memory_gib=everyone[:, -1].max().item(),
            skipped_steps=self._steps - round(steps / len(everyone)),
            damaged_pictures=round(damaged),
        )


def memory_gib(device: torch.device) -> float:
    """Peak memory that torch held on an accelerator; on a CPU, which keeps no such count, what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def _mean(total: float, count: float) -> float:
    return total / count if count else math.nan
