"""The training loop of one stage."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stages.training import checkpoint
from stages.training.data import Numbers, PictureSet, TrainingExamples
from stages.training.ema import EMA
from stages.training.objective import denoising_loss
from stages.training.recipe import Phase, Recipe
from stages.unet import UNet

LOG_EVERY = 100
MAX_BAD_STEPS = 5


@dataclass(frozen=True, slots=True)
class Report:
    """What a run says of its progress: averages since the report before."""

    images_seen: int
    total_images: int
    size: int
    loss: float
    gradient_norm: float
    learning_rate: float
    images_per_second: float


def train(
    recipe: Recipe,
    pictures: PictureSet,
    run: Path,
    *,
    on_report: Callable[[Report], None] = lambda report: None,
    on_message: Callable[[str], None] = lambda message: None,
    workers: int = 0,
) -> UNet:
    """Train a stage, or continue where its newest whole checkpoint left it.

    Every random choice is a function of the recipe's seed and the number of images seen, so a run that was stopped at any moment
    and started again ends with the weights of an uninterrupted one, to the bit on a CPU.

    Args:
        recipe: What is trained.
        pictures: The data, of the size that `TrainingExamples` asks for.
        run: The run's folder; made if missing. Holds checkpoints and `log.jsonl`.
        on_report: Called every few steps.
        on_message: Called with a sentence on anything out of the ordinary.
        workers: Processes that prepare the data; 0 = this one.

    Returns:
        The network with its averaged weights, in evaluation mode.

    Raises:
        ValueError: if recipe and data, or recipe and run folder, don't belong together.
        FloatingPointError: if several steps in a row have a loss that is not a number; the last checkpoint is whole then.
    """
    run.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision="bf16" if recipe.optimization.precision == "bfloat16" else "no")
    state = _TrainingState.begin(recipe, len(pictures.class_names), run, on_message)
    state.prepare(accelerator)
    meter = _Meter(recipe, state.images_seen)
    checkpoint_due = _next_multiple(state.images_seen, recipe.checkpoint_every)
    while state.images_seen < recipe.total_images:
        phase = recipe.phase_at(state.images_seen)
        for batch in _batches(recipe, phase, pictures, state, accelerator, workers):
            loss, norm = _step(state, batch, accelerator, on_message)
            state.images_seen = min(state.images_seen + phase.batch_size, phase.images)
            state.ema.update(accelerator.unwrap_model(state.network), state.images_seen, phase.batch_size)
            if report := meter.add(loss, norm, state.images_seen, phase):
                on_report(report)
                if accelerator.is_main_process:
                    _append(run / "log.jsonl", report)
            if state.images_seen >= checkpoint_due or state.images_seen == recipe.total_images:
                checkpoint_due = _next_multiple(state.images_seen, recipe.checkpoint_every)
                if accelerator.is_main_process:
                    state.save(accelerator)
                accelerator.wait_for_everyone()
    network = accelerator.unwrap_model(state.network)
    network.load_state_dict(state.ema.weights)
    return network.eval()


class _TrainingState:
    """What a checkpoint holds: network, optimizer, moving average and the number of images seen."""

    def __init__(self, recipe: Recipe, num_classes: int, run: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.run, self.images_seen, self.bad_steps = recipe, run, 0, 0
        self.network: Any = UNet(**recipe.network, num_classes=num_classes).to(memory_format=torch.channels_last)
        o = recipe.optimization
        self.optimizer: Any = torch.optim.AdamW(
            self.network.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=o.weight_decay, fused=True
        )
        self.ema = EMA(self.network, o.ema_half_life, o.ema_ramp)

    @classmethod
    def begin(cls, recipe: Recipe, num_classes: int, run: Path, on_message: Callable[[str], None]) -> _TrainingState:
        """A new state, or that of the run's newest whole checkpoint."""
        state = cls(recipe, num_classes, run)
        found = checkpoint.load_newest(run)
        if found is None:
            return state
        tensors, facts, problems = found
        for problem in problems:
            on_message(problem)
        added_since = {key: value for key, value in _plain(state.network.config).items() if key not in facts["network"]}
        defaults = {key: value.default for key, value in inspect.signature(UNet.__init__).parameters.items()}
        known = all(
            defaults[key] == value for key, value in added_since.items()
        )  # an option that came later stands at its default
        if not known or {**facts["network"], **added_since} != _plain(state.network.config):
            raise ValueError(f"{run} holds a run of another network; use another folder, or remove it to train anew")
        state.network.load_state_dict(tensors["network"])
        state.ema.weights = {name: tensors["ema"][name] for name in state.ema.weights}
        checkpoint.restore_optimizer(state.optimizer, tensors["optimizer"])
        state.images_seen = facts["images_seen"]
        on_message(f"continued from {state.images_seen} images")
        return state

    def prepare(self, accelerator: Accelerator) -> None:
        self.network, self.optimizer = accelerator.prepare(self.network, self.optimizer)
        self.ema.weights = {name: value.to(accelerator.device) for name, value in self.ema.weights.items()}

    def save(self, accelerator: Accelerator) -> None:
        network = accelerator.unwrap_model(self.network)
        groups = {
            "network": network.state_dict(),
            "ema": self.ema.weights,
            "optimizer": checkpoint.optimizer_tensors(self.optimizer.optimizer),
        }
        checkpoint.save(self.run, self.images_seen, groups, {"network": _plain(network.config)})


def _batches(
    recipe: Recipe, phase: Phase, pictures: PictureSet, state: _TrainingState, accelerator: Accelerator, workers: int
) -> Iterator[dict[str, Tensor]]:
    """This process's share of every global batch left in the phase, on its device."""
    processes = accelerator.num_processes
    if phase.batch_size % processes:
        raise ValueError(f"batch_size {phase.batch_size} can't be shared evenly by {processes} processes")
    network = accelerator.unwrap_model(state.network)
    null_label = 0 if network.null_label is None else network.null_label
    numbers = Numbers(state.images_seen, phase.images, phase.batch_size, accelerator.process_index, processes)
    loader: DataLoader = DataLoader(
        TrainingExamples(pictures, recipe, phase, null_label),
        batch_size=phase.batch_size // processes,
        sampler=numbers,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    for batch in loader:
        yield {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}


def _step(
    state: _TrainingState, batch: dict[str, Tensor], accelerator: Accelerator, on_message: Callable[[str], None]
) -> tuple[Tensor, Tensor]:
    """One step of the optimizer; a step whose gradient is not a number is skipped. Returns loss and gradient norm."""
    recipe = state.recipe
    torch.manual_seed((recipe.seed << 40) + state.images_seen)  # dropout, if any
    state.network.train()
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(state.images_seen)
    with accelerator.autocast():
        objective = recipe.objective
        losses = denoising_loss(_Joint(state.network, accelerator), batch, objective.loss, objective.weighting)
    accelerator.backward(losses.mean())
    norm = accelerator.clip_grad_norm_(state.network.parameters(), recipe.optimization.clip_norm)
    if torch.isfinite(norm):
        state.bad_steps = 0
        state.optimizer.step()
    else:
        state.bad_steps += 1
        levels = ", ".join(f"{value:.1f}" for value in batch["log_snr"][~torch.isfinite(losses)].tolist())
        on_message(
            f"skipped a step at {state.images_seen} images: the gradient is not a number (log-SNR {levels or 'all finite'})"
        )
        if state.bad_steps >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"{MAX_BAD_STEPS} steps in a row had no finite gradient; lower the learning rate or use float32"
            )
    state.optimizer.zero_grad()
    return losses.detach().mean(), norm


class _Joint:
    """A network prepared by accelerate, with the facts of the one inside."""

    def __init__(self, network: nn.Module, accelerator: Accelerator) -> None:
        inner = accelerator.unwrap_model(network)
        self.prediction_type, self.num_classes, self.null_label = inner.prediction_type, inner.num_classes, inner.null_label
        self.network = network

    def __call__(
        self,
        x_t: Tensor,
        log_snr: Tensor,
        class_labels: Tensor | None = None,
        low_res: Tensor | None = None,
        aug_level: Tensor | None = None,
    ) -> Tensor:
        return self.network(x_t, log_snr, class_labels, low_res, aug_level)


class _Meter:
    """Averages loss and gradient norm between reports."""

    def __init__(self, recipe: Recipe, images_seen: int) -> None:
        self.recipe, self.steps, self.images_before, self.time_before = recipe, 0, images_seen, time.monotonic()
        self.loss, self.norm = torch.zeros(()), torch.zeros(())

    def add(self, loss: Tensor, norm: Tensor, images_seen: int, phase: Phase) -> Report | None:
        self.steps += 1
        self.loss, self.norm = self.loss.to(loss) + loss, self.norm.to(norm) + norm
        if self.steps < LOG_EVERY and images_seen < self.recipe.total_images:
            return None
        now = time.monotonic()
        report = Report(
            images_seen,
            self.recipe.total_images,
            phase.size,
            self.loss.item() / self.steps,
            self.norm.item() / self.steps,
            self.recipe.learning_rate_at(images_seen),
            (images_seen - self.images_before) / max(now - self.time_before, 1e-9),
        )
        self.steps, self.images_before, self.time_before = 0, images_seen, now
        self.loss, self.norm = torch.zeros(()), torch.zeros(())
        return report


def _append(path: Path, report: Report) -> None:
    line = {name: getattr(report, name) for name in Report.__slots__}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _next_multiple(images: int, step: int) -> int:
    return (images // step + 1) * step


def _plain(config: Any) -> dict[str, Any]:
    """The network's configuration as JSON gives it back."""
    return json.loads(json.dumps({key: value for key, value in config.items() if not key.startswith("_")}))
