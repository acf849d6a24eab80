"""The steps of the optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cascade.stages.denoiser import Wrapper
from cascade.stages.graphs import Graphs
from cascade.stages.training.examples import Batch, TrainingExamples
from cascade.stages.training.objective import denoising_loss
from cascade.stages.training.state import Say, TrainingState
from cascade.stages.unet import UNet

MAX_BAD_STEPS = 5
LOOK_EVERY = 10
"""Steps on an accelerator between two looks at whether their gradients were finite."""
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step was like for this process: the `losses` of its examples are [B], on its device; the gradient is everyone's.

    What is on the host: `log_snr` and `index` of the examples, in the same order; `damaged`, how many of them show another
    picture because their own is damaged; `before`, the images seen when it began.
    """

    losses: Tensor
    gradient_norm: Tensor
    log_snr: Tensor
    index: Tensor
    damaged: int
    before: int


class Stepper:
    """Takes the steps of a run, each on this process's share of a batch; one whose gradient is not a number moves nothing.

    On one CUDA device a step is recorded as a graph: the rest of its examples, forward and backward pass, and optimizers, in the
    recipe's number type with a copy of the network in it; the result differs from that of a step taken in the ordinary way by
    rounding. Gradients in parts, float16 and gradient checkpointing are for the ordinary way, as are several processes.

    Args:
        state: Moved on by each step, but for `images_seen` and the averages.
        on_message: Called with a sentence on every step that was skipped, see `look`.
    """

    def __init__(self, state: TrainingState, on_message: Say) -> None:
        self.state, self.on_message = state, on_message
        accelerator, o = state.accelerator, state.recipe.optimization
        alone = accelerator.num_processes == 1 and o.accumulate == 1 and not o.gradient_checkpointing
        on_cuda = accelerator.device.type == "cuda" and accelerator.scaler is None
        self._recorded = RecordedStep(state) if alone and on_cuda else None
        self._look_every = 1 if accelerator.device.type == "cpu" else LOOK_EVERY
        self._unseen: list[Outcome] = []

    def __call__(self, parts: Sequence[Batch], examples: TrainingExamples) -> Outcome:
        """Take a step on collated batches of `TrainingExamples.read`, of equal size; their gradients are averaged.

        Raises FloatingPointError if MAX_BAD_STEPS steps in a row had no finite gradient, at once or after a few more.
        """
        state = self.state
        if not state.network.training:
            state.network.train()
        state.set_rate()
        if self._recorded is not None:
            _seed_dropout(state, parts, 0)
            losses, norm = self._recorded(parts[0], examples)
        else:
            losses = torch.cat([_backward(state, parts, place, examples) for place in range(len(parts))])
            norm = state.accelerator.clip_grad_norm_(state.network.parameters(), state.recipe.optimization.clip_norm)
            state.move(norm.isfinite())
            for optimizer in state.optimizers.values():
                optimizer.zero_grad()
        log_snr, index, damaged = (torch.cat([part[key] for part in parts]) for key in ("log_snr", "index", "damaged"))
        outcome = Outcome(losses, norm, log_snr, index, int((damaged[:, 0, 0] >= 0).sum()), state.images_seen)
        self._unseen.append(outcome)
        if len(self._unseen) >= self._look_every:
            self.look(examples.pictures.name)
        return outcome

    def look(self, name_of: Callable[[int], str]) -> None:
        """Look at the steps since the last look, which waits for an accelerator: say which were skipped, and end a hopeless run.

        `name_of` gives a picture's name by its index. Raises FloatingPointError as a step does.
        """
        unseen, self._unseen = self._unseen, []
        finite = torch.stack([outcome.gradient_norm.isfinite() for outcome in unseen]).tolist() if unseen else []
        for outcome, good in zip(unseen, finite, strict=True):
            if good:
                self.state.bad_steps = 0
            else:
                _note_bad_step(self.state, outcome, name_of, self.on_message)


class RecordedStep:
    """Forward and backward pass and optimizers on one CUDA device, recorded as a graph; see `Stepper`."""

    def __init__(self, state: TrainingState) -> None:
        self.state, self.graphs = state, Graphs(state.accelerator.device)
        self.weights = list(state.network.parameters())
        narrow = state.recipe.optimization.precision == "bfloat16"
        self.network = copy.deepcopy(state.network).to(torch.bfloat16) if narrow else state.network
        if narrow and state.recipe.optimization.compile:
            self.network.compile_repeated_blocks(dynamic=False)  # copies are not compiled
        self.copies = list(self.network.parameters()) if narrow else []
        for weight in self.weights if narrow else []:
            weight.grad = torch.zeros_like(weight)

    def __call__(self, batch: Batch, examples: TrainingExamples) -> tuple[Tensor, Tensor]:
        """Take a step: the loss of each example, [B], and the norm of the gradient.

        Examples that the network denoises at half their size come last, so that a graph is of one number of them.
        """
        coarse = self.network.coarse(batch["log_snr"], examples.phase.size)
        order = torch.arange(len(batch["label"])) if coarse is None else coarse.int().argsort(stable=True)
        fine = len(order) - (0 if coarse is None else int(coarse.sum()))
        inputs = {name: value[order] for name, value in batch.items() if name not in ("oddities", "damaged")}
        inputs["back"] = order.argsort()
        both = self.graphs((examples.phase, fine), partial(self._take, examples, fine), inputs)
        return both[:-1], both[-1]

    def _take(self, examples: TrainingExamples, fine: int, inputs: Batch) -> Tensor:
        state, losses = self.state, []
        for weight in self.copies or self.weights:
            weight.grad = None
        batch = examples.complete(inputs)
        for chosen, at_half_size in ((slice(fine), False), (slice(fine, None), True)):
            part = {name: value[chosen] for name, value in batch.items()}
            if len(part["x0"]):
                network = Running(self.network, partial(self.network.predict, at_half_size))
                losses.append(denoising_loss(network, part, state.recipe.objective))
        together = torch.cat(losses)
        together.mean().backward()
        if self.copies:
            torch._foreach_copy_([weight.grad for weight in self.weights], [weight.grad for weight in self.copies])
        norm = torch.nn.utils.clip_grad_norm_(self.weights, state.recipe.optimization.clip_norm)
        state.move(norm.isfinite())
        if self.copies:
            with torch.no_grad():
                torch._foreach_copy_(self.copies, self.weights)
        return torch.cat([together.detach()[inputs["back"]], norm[None]])


def _backward(state: TrainingState, parts: Sequence[Batch], place: int, examples: TrainingExamples) -> Tensor:
    """Add one part's gradient to that of the parts before; returns the loss of each of its examples."""
    accelerator = state.accelerator
    _seed_dropout(state, parts, place)
    part = {name: value.to(accelerator.device, non_blocking=True) for name, value in parts[place].items()}
    last = place == len(parts) - 1
    with nullcontext() if last else accelerator.no_sync(state.prepared):
        losses = denoising_loss(Running(state.network, state.prepared), examples.complete(part), state.recipe.objective)
        accelerator.backward(losses.mean() / len(parts))
    return losses.detach()


def _seed_dropout(state: TrainingState, parts: Sequence[Batch], place: int) -> None:
    """Dropout is a function of the part's first example, so that processes and parts differ and a resumed run does not."""
    first = state.images_seen + (state.accelerator.process_index * len(parts) + place) * len(parts[place]["label"])
    torch.manual_seed(int(np.random.SeedSequence([state.recipe.seed, 3, first]).generate_state(1, np.uint64)[0]))


def _note_bad_step(state: TrainingState, outcome: Outcome, name_of: Callable[[int], str], say: Say) -> None:
    """Say where a step without a finite gradient came from, and end the run after several in a row."""
    accelerator = state.accelerator
    mine = (each.to(accelerator.device) for each in (outcome.losses.isfinite(), outcome.log_snr, outcome.index))
    finite, log_snr, index = (accelerator.gather(values).cpu() for values in mine)
    if accelerator.scaler is not None and finite.all() and accelerator.scaler.get_scale() >= 1:
        return  # float16 while the scaler still looks for its scale
    state.bad_steps += 1
    chosen = finite if finite.all() else ~finite
    pictures = [f"{name_of(int(i))} at log-SNR {level:.1f}" for i, level in zip(index[chosen], log_snr[chosen], strict=True)]
    more = f" and {len(pictures) - _NAMED} more" if len(pictures) > _NAMED else ""
    where = f"{'its pictures are' if finite.all() else 'no finite loss for'} {', '.join(pictures[:_NAMED])}{more}"
    say(f"skipped a step at {outcome.before} images: its gradient is not a number; {where}")
    if state.bad_steps >= MAX_BAD_STEPS:
        raise FloatingPointError(
            f"{MAX_BAD_STEPS} steps in a row, up to {outcome.before} images, had no finite gradient: {where};"
            " look at these pictures, lower the learning rate or use float32"
        )


class Running(Wrapper):
    """The way a network is run, as a `Denoiser` with the facts of the bare network."""

    def __init__(self, bare: UNet, run: Any) -> None:
        super().__init__(bare)  # type: ignore[arg-type]  # its facts are properties, and a protocol's may be set
        self.run = run

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        return self.run(*inputs, **named)
