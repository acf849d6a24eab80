"""Training within a time: a recipe whose lengths are fitted to what is left of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from cascade.stages.training.recipe import Recipe

FITS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96)
"""Shares of the time at which the lengths are fitted anew, by the speed so far."""
CHECKPOINTS = 5
"""Of such a run, at least."""
SAMPLES, WARMUP = 0.45, 0.05
"""Share of it between two grids of samples, and the largest that is warm-up."""
SPARED = 0.01
"""Share of the time that is planned for nothing, beside what a checkpoint takes: the stage has to be written, too."""
FEWEST_STEPS = 20

Clock = Callable[[], float]


def fitted(recipe: Recipe, factor: float) -> Recipe:
    """The recipe `factor` times as long: its phases and the average's half-life, and the warm-up where it would be too long.

    The cooldown is a share of it anyway. Checkpoints, and with them validations, come at least CHECKPOINTS times, samples twice
    on the way and at the end.
    """
    ends: list[int] = []
    for phase in recipe.phases:
        ends.append(max(round(factor * phase.images), ends[-1] + 1 if ends else 1))
    phases = tuple(replace(phase, images=end) for phase, end in zip(recipe.phases, ends, strict=True))
    o, total = recipe.optimization, ends[-1]
    warmup, half_life = min(o.warmup, round(WARMUP * total)), max(1, round(factor * o.ema_half_life))
    every = max(1, min(recipe.checkpoint_every, total // CHECKPOINTS))
    checks = recipe.validation
    return replace(
        recipe,
        phases=phases,
        optimization=replace(o, warmup=warmup, ema_half_life=half_life),
        checkpoint_every=every,
        samples=replace(recipe.samples, every=max(1, round(SAMPLES * total))),
        validation=checks and replace(checks, every=None),
        snapshots=recipe.snapshots and replace(recipe.snapshots, every=every),
    )


class TimeBox:
    """Fits a recipe to a time, from a first guess of the speed and then from what was measured on the way.

    Args:
        recipe: Of any length.
        end: When everything has to be done, by the clock.
        seconds_per_image: Of each phase, as far as it is known at the beginning.
        clock: Seconds.
        seen: Images that the run has seen already, where it goes on.
        strict: Whether a new run needs time for FEWEST_STEPS steps; if not, it takes as many, whatever time they take.

    Raises:
        ValueError: if a new run's time is too short for FEWEST_STEPS steps, and it is strict.
    """

    def __init__(
        self,
        recipe: Recipe,
        end: float,
        seconds_per_image: Sequence[float],
        clock: Clock = time.monotonic,
        seen: int = 0,
        strict: bool = True,
    ) -> None:
        self.recipe, self.end, self.rates, self.clock = recipe, end, list(seconds_per_image), clock
        self.begun = self.last = clock()
        self.seen, self.paused, self.pauses, self.slower = seen, 0.0, [0.0], 1.0
        self.due = list(FITS)
        self.factor = self._factor()
        left, before = max(0.0, end - self.begun), (0, *(phase.images for phase in recipe.phases))
        in_all = sum((phase.images - start) / phase.batch_size for phase, start in zip(recipe.phases, before, strict=False))
        step = self._seconds(1, 0, recipe.total_images) / in_all
        self.least = 0.0 if strict else FEWEST_STEPS / in_all
        self.factor = max(self.factor, self.least)
        if strict and not seen and left < FEWEST_STEPS * step:
            raise ValueError(
                f"{left:.0f} s are left for training, enough for {int(left / step)} steps of {recipe.name}, expected at least"
                f" {FEWEST_STEPS}; give it {math.ceil(FEWEST_STEPS * step - end + self.begun)} s more, or smaller batches"
            )

    def after_step(self, images_seen: int, pauses: Sequence[float]) -> float | None:
        """How long the recipe is now, as a factor for `fitted`, if it is time to fit it anew.

        `pauses` are those so far for checkpoints, validations and samples, in seconds.
        """
        now = self.clock()
        if not self.due or now < self.begun + self.due[0] * (self.end - self.begun):
            return None
        while self.due and now >= self.begun + self.due[0] * (self.end - self.begun):
            self.due.pop(0)
        busy = now - self.last - (sum(pauses) - self.paused)
        expected = self._seconds(self.factor, self.seen, images_seen)
        if expected > 0:
            self.slower = busy / expected
        self.last, self.seen, self.paused, self.pauses = now, images_seen, sum(pauses), list(pauses) or [0.0]
        self.factor = max(self._factor(), self.least)
        return self.factor

    def _factor(self) -> float:
        """The length for which what is left to train takes the time that is left, by bisection."""
        low, high = 0.0, 1.0
        while self._needed(high) < self._left() and high < 1e6:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._needed(middle) < self._left() else (low, middle)
        return max(low, (self.seen + 1) / self.recipe.total_images)

    def _left(self) -> float:
        return self.end - self.clock() - SPARED * (self.end - self.begun)

    def _needed(self, factor: float) -> float:
        """Seconds from now to the end of a recipe so long, with its pauses; the last has samples, as the longest one so far."""
        plan = fitted(self.recipe, factor)
        checkpoints = plan.total_images // plan.checkpoint_every - self.seen // plan.checkpoint_every
        between = max(0, checkpoints - 1) * sorted(self.pauses)[len(self.pauses) // 2]
        return self.slower * self._seconds(factor, self.seen, plan.total_images) + between + max(self.pauses)

    def _seconds(self, factor: float, start: int, stop: int) -> float:
        """What the images from `start` to `stop` take at the speed known at the beginning, in a recipe so long."""
        total, before = 0.0, 0
        for phase, rate in zip(fitted(self.recipe, factor).phases, self.rates, strict=True):
            total += rate * max(0, min(stop, phase.images) - max(start, before))
            before = phase.images
        return total
