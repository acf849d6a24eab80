"""The loss on held-out pictures at fixed noise levels: what tells learning from learning by heart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from cascade.stages.training.examples import PictureSource, TrainingExamples
from cascade.stages.training.objective import denoising_loss
from cascade.stages.training.recipe import REGRESSION, Recipe
from cascade.stages.training.state import TrainingState
from cascade.stages.training.step import Running

SEED = 0
"""Of noise, crops and choice of pictures: the same for every run, so that runs compare."""


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """The validation loss of the averaged weights.

    images_seen: Training images before it was measured.
    loss: Mean over the pictures and noise levels, weighted as in training.
    loss_by_log_snr: The mean at each noise level, by its log-SNR, most noise first.
    psnr: Of a regression by its mean squared error, in dB; None for anything else.
    """

    images_seen: int
    loss: float
    loss_by_log_snr: dict[float, float]
    psnr: float | None = None

    def as_record(self) -> dict[str, float | dict[str, float]]:
        """Its line in the log, under names of its own."""
        by_log_snr = {f"{level:.2f}": loss for level, loss in self.loss_by_log_snr.items()}
        psnr = {} if self.psnr is None else {"validation_psnr": self.psnr}
        return {"validation_loss": self.loss, "validation_loss_by_log_snr": by_log_snr, **psnr}


class Validator:
    """Measures the validation loss of a recipe, at the size of its last phase. The processes share the pictures.

    The recipe's `validation` says how much is measured. Nothing is flipped and no label dropped. Pictures are of the training's
    size and classes.
    """

    def __init__(self, recipe: Recipe, held_out: PictureSource, null_label: int | None) -> None:
        assert recipe.validation is not None
        self.count, self.phase = min(recipe.validation.images, len(held_out)), recipe.phases[-1]
        data, objective = replace(recipe.data, flip=False, balanced=False), replace(recipe.objective, label_dropout=0.0)
        fixed = replace(recipe, seed=SEED, data=data, objective=objective)
        self.examples = TrainingExamples(held_out, fixed, self.phase, null_label)
        u = (torch.arange(recipe.validation.levels, dtype=torch.float64) + 0.5) / recipe.validation.levels
        self.levels = self.examples.log_snr(u).sort().values

    @torch.no_grad()
    def __call__(self, state: TrainingState) -> ValidationReport:
        """The loss of the state's averaged weights; every process has to ask."""
        accelerator, optimization, objective = state.accelerator, state.recipe.optimization, state.recipe.objective
        numbers = range(accelerator.process_index, self.count, accelerator.num_processes)
        batch_size = self.phase.batch_size // accelerator.num_processes // optimization.accumulate
        sums = torch.zeros(len(self.levels), dtype=torch.float64)
        with state.averaged() as network:
            for start in range(0, len(numbers), batch_size):
                read = self.examples.read(numbers[start : start + batch_size])
                batch = self.examples.complete({name: value.to(accelerator.device) for name, value in read.items()})
                levels = [level.to(batch["log_snr"]).expand(len(batch["x0"])) for level in self.levels]
                each = [denoising_loss(Running(network, network), {**batch, "log_snr": level}, objective) for level in levels]
                sums += torch.stack([losses.double().sum().cpu() for losses in each])
        means = accelerator.reduce(sums.float().to(accelerator.device), "sum").double().cpu() / self.count
        by_level, loss = dict(zip(self.levels.tolist(), means.tolist(), strict=True)), means.mean().item()
        is_error = objective.kind == REGRESSION and objective.loss == "l2"
        psnr = 10 * math.log10(4 / loss) if is_error and loss > 0 else None  # peak^2 / MSE of images from -1 to 1
        return ValidationReport(state.images_seen, loss, by_level, psnr)
