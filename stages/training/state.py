"""What a training run is made of at one moment: network, optimizer, averages, images seen. It begins, resumes, is saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from cascade.stages.training import checkpoint, post_hoc
from cascade.stages.training.ema import EMA, MovingAverage, PowerAverage
from cascade.stages.training.muon import Muon
from cascade.stages.training.recipe import PRECISIONS, Optimization, Recipe
from cascade.stages.training.start_from import difference, settings_of, take_weights
from cascade.stages.unet import UNet

Say = Callable[[str], None]
"""Called with a sentence on anything out of the ordinary."""


class TrainingState:
    """Network, optimizer, averages of the weights and the number of images seen.

    `ema` is the average that the stage is made of; `power` are those that only snapshots are made of.
    `network` is the bare network, whose weights are saved; `prepared` the same one as accelerate runs it. `optimizers` are by the
    names of their files in a checkpoint.
    """

    def __init__(self, recipe: Recipe, num_classes: int, run: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.run, self.images_seen, self.bad_steps = recipe, run, 0, 0
        self.network = UNet(**recipe.network, num_classes=recipe.num_classes(num_classes)).to(memory_format=torch.channels_last)
        self.prepared: Any = self.network
        self.accelerator: Accelerator
        o = recipe.optimization
        self.optimizers: dict[str, Any] = optimizers_of(self.network, o)
        self.ema = EMA(self.network, o.ema_half_life, o.ema_ramp)
        self.power = [PowerAverage(self.network, std) for std in recipe.snapshots.stds] if recipe.snapshots is not None else []
        self.averages = [self.ema, *self.power]

    @classmethod
    def begin(cls, recipe: Recipe, num_classes: int, run: Path, accelerator: Accelerator, on_message: Say) -> TrainingState:
        """The state of the run's newest whole checkpoint; without one a new state, from the stage that the recipe names if any.

        Raises ValueError if checkpoint or stage are of another network, or the processes don't see the same checkpoint.
        """
        if accelerator.is_main_process:
            checkpoint.clean(run)
        accelerator.wait_for_everyone()
        state = cls(recipe, num_classes, run)
        if found := checkpoint.load_newest(run):
            tensors, facts, problems = found
            for problem in problems:
                on_message(problem)
            state._restore(tensors, facts)
        elif recipe.start_from is not None:
            on_message(take_weights(state.network, Path(recipe.start_from)))
            state.ema.weights = MovingAverage(state.network).weights
        places = accelerator.gather(torch.tensor([state.images_seen], device=accelerator.device)).tolist()
        if len(set(places)) > 1:
            raise ValueError(f"the processes begin at {places} images: {run} must be one folder that all of them share")
        if found and not problems and accelerator.is_main_process:  # a run killed right after its newest one had no time for it
            checkpoint.prune(run, recipe.keep_checkpoints)
        state._prepare(accelerator, facts.get("scaler") if found else None)
        if accelerator.is_main_process:
            post_hoc.forget(run, state.images_seen)
        if found:
            changed = [f"; now {_said(k, v)}, before {facts[k]}" for k, v in state.machine().items() if facts.get(k, v) != v]
            on_message(f"continued from {state.images_seen:,} images{''.join(changed)}")
        return state

    def _restore(self, tensors: checkpoint.Tensors, facts: checkpoint.State) -> None:
        if differs := difference(facts["network"], self.network):
            raise ValueError(f"{self.run} holds a run of another network: {differs}; use another folder, or remove this one")
        self.network.load_state_dict(tensors["network"])
        if missing := [average.std for average in self.power if average.name not in tensors]:
            raise ValueError(
                f"{self.run} holds a run without an average of width {missing[0]:g}, which can't begin in its middle; take it"
                " out of snapshots.stds, or train anew in another folder"
            )
        for average in self.averages:
            average.weights = {name: tensors[average.name][name] for name in average.weights}
        if absent := next((name for name in self.optimizers if name not in tensors), None):
            raise ValueError(f"{self.run} holds a run without {absent}, which can't begin in its middle; use another folder")
        for name, optimizer in self.optimizers.items():
            checkpoint.restore_optimizer(optimizer, tensors[name])
        self.images_seen, self.bad_steps = facts["images_seen"], facts.get("bad_steps", 0)

    def _prepare(self, accelerator: Accelerator, scaler: dict[str, Any] | None) -> None:
        """Move to the accelerator's device and let it run the network, over several processes if there are."""
        self.accelerator = accelerator
        if self.recipe.optimization.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        if self.recipe.optimization.compile:
            self.network.compile_repeated_blocks(dynamic=False)
        self.prepared, *prepared = accelerator.prepare(self.network, *self.optimizers.values())
        self.optimizers = dict(zip(self.optimizers, prepared, strict=True))
        if accelerator.device.type == "cuda":  # rates in its memory, where a recorded step reads them
            for group in self._groups():
                group |= {"lr": torch.zeros((), device=accelerator.device), "capturable": True}
        if scaler is not None and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(scaler)
        for average in self.averages:
            average.weights = {name: value.to(accelerator.device) for name, value in average.weights.items()}

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self.optimizers.values():
            yield from optimizer.param_groups

    def machine(self) -> dict[str, Any]:
        """What the last bits of a step depend on beside recipe and images seen: another value of one may change them."""
        device = self.accelerator.device.type
        precision = next(name for name, kind in PRECISIONS.items() if kind == self.accelerator.mixed_precision)
        facts = {"processes": self.accelerator.num_processes, "device": device, "precision": precision}
        return facts | ({"threads": torch.get_num_threads()} if device == "cpu" else {})

    def set_rate(self) -> None:
        """Set the learning rate of the step that starts now."""
        rate = self.recipe.learning_rate_at(self.images_seen)
        for group in self._groups():
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def move(self, finite: torch.Tensor) -> None:
        """Let the optimizers move the weights by their gradients, unless those are not `finite`, bool []."""
        for optimizer in self.optimizers.values():
            if self.accelerator.scaler is None:  # float16's leaves such a step out itself, and lowers its scale
                optimizer.optimizer.grad_scale, optimizer.optimizer.found_inf = None, (~finite).float()
            optimizer.step()

    def refit(self, recipe: Recipe) -> None:
        """Go on by the same recipe of another length."""
        self.recipe = recipe
        self.ema.half_life = recipe.optimization.ema_half_life

    def average(self, images_before: int) -> None:
        """Take the weights into the averages, after a step that began at `images_before` and ended at `images_seen`."""
        for average in self.averages:
            average.update(self.network, self.images_seen, self.images_seen - images_before)

    @contextmanager
    def averaged(self) -> Iterator[UNet]:
        """The network with its averaged weights, in evaluation mode; its own are back afterwards. Takes no further memory."""

        def exchange() -> None:
            for name, own in self.network.state_dict().items():
                held = own.clone()
                own.copy_(self.ema.weights[name])
                self.ema.weights[name].copy_(held)

        exchange()
        try:
            yield self.network.eval()
        finally:
            exchange()
            self.network.train()

    def snapshot(self) -> None:
        """Let the main process write a snapshot of the power averages."""
        if self.accelerator.is_main_process:
            post_hoc.save(self.run, self.images_seen, self.power, settings_of(self.network))
        self.accelerator.wait_for_everyone()

    def save(self, validation_loss: float | None = None) -> None:
        """Let the main process write a checkpoint, with the validation loss measured at this moment, if it was."""
        if self.accelerator.is_main_process:
            groups = {average.name: average.weights for average in self.averages} | {"network": self.network.state_dict()}
            groups |= {name: checkpoint.optimizer_tensors(each.optimizer) for name, each in self.optimizers.items()}
            facts = {
                "network": settings_of(self.network),
                "bad_steps": self.bad_steps,
                **self.machine(),
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                checkpoint.LOSS: validation_loss if validation_loss is not None and math.isfinite(validation_loss) else None,
            }
            checkpoint.save(self.run, self.images_seen, groups, facts, self.recipe.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def finish(self, on_message: Say) -> UNet:
        """The network with the averaged weights that the recipe takes as its result, in evaluation mode and as it was built."""
        weights = self.ema.weights
        best = checkpoint.best_folder(self.run) if self.recipe.result == "best" else None
        if best is not None:
            try:
                tensors, facts = checkpoint.load(best)
            except checkpoint.DAMAGED as error:
                raise ValueError(
                    f"{best.name}, of the least validation loss, is damaged ({error}); remove it, or take result=last"
                ) from error
            weights = {name: tensors["ema"][name] for name in weights}
            on_message(f"the least validation loss was {facts[checkpoint.LOSS]:.5f}, at {facts['images_seen']} images")
        network = self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
        network.disable_gradient_checkpointing()
        network.load_state_dict(weights)
        return network.eval()


def _said(key: str, value: Any) -> str:
    """A fact of `TrainingState.machine` in words."""
    plural = {"processes": "process", "threads": "thread"}
    return f"{value} {plural[key] if value == 1 else key}" if key in plural else f"{key} {value}"


def optimizers_of(network: UNet, optimization: Optimization) -> dict[str, torch.optim.Optimizer]:
    """The optimizers of a network's weights, by the names of their files in a checkpoint."""
    hidden = network.hidden_matrices() if optimization.optimizer == "muon" else set()
    matrices = [weight for name, weight in network.named_parameters() if name in hidden]
    others = [weight for name, weight in network.named_parameters() if name not in hidden]
    beta1, beta2 = optimization.betas
    decay = optimization.weight_decay
    adam = torch.optim.AdamW(others, lr=0.0, betas=(beta1, beta2), weight_decay=decay, fused=True)
    return {"optimizer": adam} | ({"muon": Muon(matrices, decay)} if matrices else {})
