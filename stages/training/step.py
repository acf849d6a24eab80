"""One step of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cascade.stages.denoiser import Wrapper
from cascade.stages.training.objective import denoising_loss
from cascade.stages.training.state import Say, TrainingState
from cascade.stages.unet import UNet

MAX_BAD_STEPS = 5
_NAMED = 8

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step was like for this process: `losses` and `log_snr` of its examples are [B], the gradient is everyone's.

    `damaged` is how many of the examples show another picture because their own is damaged.
    """

    losses: Tensor
    log_snr: Tensor
    damaged: int
    gradient_norm: Tensor


def step(state: TrainingState, parts: Sequence[Batch], name_of: Callable[[int], str], on_message: Say) -> Outcome:
    """One step of the optimizer on this process's share of a batch; a step whose gradient is not a number is skipped.

    Moves the state on, but for `images_seen` and the averages. The parts are of equal size, collated `TrainingExamples`; their
    gradients are averaged. `name_of` gives a picture's name by its index, for what is said of a skipped step. Raises
    FloatingPointError if MAX_BAD_STEPS steps in a row had no finite gradient.
    """
    accelerator, recipe = state.accelerator, state.recipe
    state.network.train()
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(state.images_seen)
    losses = torch.cat([_backward(state, parts, place) for place in range(len(parts))])
    norm = accelerator.clip_grad_norm_(state.network.parameters(), recipe.optimization.clip_norm)
    finite = bool(torch.isfinite(norm))
    if finite or accelerator.scaler is not None:  # float16: the scaler leaves the step out itself, and lowers its scale
        state.optimizer.step()
    state.optimizer.zero_grad()
    damaged = sum(int((part["damaged"][:, 0, 0] >= 0).sum()) for part in parts)
    outcome = Outcome(losses, torch.cat([part["log_snr"] for part in parts]).to(losses.device), damaged, norm)
    if finite:
        state.bad_steps = 0
    else:
        _note_bad_step(state, outcome, torch.cat([part["index"] for part in parts]), name_of, on_message)
    return outcome


def _backward(state: TrainingState, parts: Sequence[Batch], place: int) -> Tensor:
    """Add one part's gradient to that of the parts before; returns the loss of each of its examples."""
    accelerator, recipe, size = state.accelerator, state.recipe, len(parts[place]["x0"])
    first = state.images_seen + (accelerator.process_index * len(parts) + place) * size
    seed = np.random.SeedSequence([recipe.seed, 3, first]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(seed))  # dropout: a function of the part's first example, so processes differ
    part = {name: value.to(accelerator.device, non_blocking=True) for name, value in parts[place].items()}
    last = place == len(parts) - 1
    with nullcontext() if last else accelerator.no_sync(state.prepared):
        losses = denoising_loss(Running(state.network, state.prepared), part, recipe.objective)
        accelerator.backward(losses.mean() / len(parts))
    return losses.detach()


def _note_bad_step(state: TrainingState, outcome: Outcome, index: Tensor, name_of: Callable[[int], str], say: Say) -> None:
    """Say where a step without a finite gradient came from, and end the run after several in a row."""
    accelerator = state.accelerator
    mine = (outcome.losses.isfinite(), outcome.log_snr, index.to(accelerator.device))
    finite, log_snr, index = (accelerator.gather(values).cpu() for values in mine)
    if accelerator.scaler is not None and finite.all() and accelerator.scaler.get_scale() >= 1:
        return  # float16 while the scaler still looks for its scale
    state.bad_steps += 1
    chosen = finite if finite.all() else ~finite
    pictures = [f"{name_of(int(i))} at log-SNR {level:.1f}" for i, level in zip(index[chosen], log_snr[chosen], strict=True)]
    more = f" and {len(pictures) - _NAMED} more" if len(pictures) > _NAMED else ""
    where = f"{'its pictures are' if finite.all() else 'no finite loss for'} {', '.join(pictures[:_NAMED])}{more}"
    say(f"skipped a step at {state.images_seen} images: its gradient is not a number; {where}")
    if state.bad_steps >= MAX_BAD_STEPS:
        raise FloatingPointError(
            f"{MAX_BAD_STEPS} steps in a row, up to {state.images_seen} images, had no finite gradient: {where};"
            " look at these pictures, lower the learning rate or use float32"
        )


class Running(Wrapper):
    """The way a network is run, as a `Denoiser` with the facts of the bare network."""

    def __init__(self, bare: UNet, run: Any) -> None:
        super().__init__(bare)  # type: ignore[arg-type]  # its facts are properties, and a protocol's may be set
        self.run = run

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        return self.run(*inputs, **named)
