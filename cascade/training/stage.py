"""What `cascade train` does around the training loop: the data it names, and the finished stage as a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cascade import data as datasets
from cascade.cli.errors import Failure
from cascade.schedulers import DEFAULT, scheduler_class
from cascade.stages.noise import LinearSchedule, betas_of
from cascade.stages.regression import RegressionPipeline
from cascade.stages.stage import StagePipeline
from cascade.stages.training import Recipe
from cascade.stages.training.examples import PictureSource
from cascade.stages.unet import UNet
from cascade.training.recipes import pipeline_class


def picture_size(recipe: Recipe) -> int:
    """Side of the pictures that the recipe is trained on: an SR3 stage makes its crops and small images from whole ones."""
    size: int = recipe.network["sample_size"]
    return size if recipe.network.get("low_res_size") else max(phase.size for phase in recipe.phases)


def class_names(recipe: Recipe) -> tuple[str, ...]:
    """Names of the classes in the recipe's data, in the order of their labels. Errors as in `cascade.data.class_names`."""
    return datasets.class_names(recipe.data)


def load_pictures(recipe: Recipe, progress: Callable[[int, int], None]) -> PictureSource:
    """The recipe's data at the size that it is trained on. Arguments and errors as in `cascade.data.open_pictures`."""
    return datasets.open_pictures(recipe.data, picture_size(recipe), progress)


def pipeline_of(network: UNet, recipe: Recipe) -> StagePipeline:
    """The trained network as a stage, with the scheduler and the settings that its recipe names."""
    stage: Any = pipeline_class(recipe.network, recipe.objective)
    if stage is RegressionPipeline:
        return RegressionPipeline(network)
    schedule = recipe.objective.law.schedule()
    betas = betas_of(schedule, schedule.num_steps) if isinstance(schedule, LinearSchedule) else betas_of(schedule)
    settings = dict(recipe.sampling)
    kind = scheduler_class(settings.pop("scheduler", DEFAULT))
    scheduler = kind(
        num_train_timesteps=len(betas),
        trained_betas=betas,
        prediction_type=network.prediction_type,
        timestep_spacing="linspace",  # from the noisiest level on; some schedulers would begin a step below it
    )
    return stage(network, scheduler, **settings)


def check_export(folder: Path) -> None:
    """Whether the finished stage may be written there: a new folder, an empty one, or an earlier stage, which it replaces."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "model_index.json").is_file()):
        raise ValueError(f"{folder} exists and is not the folder of a stage, so it is not replaced; choose another --export")


def export(network: UNet, recipe: Recipe, folder: Path) -> None:
    """Write the stage, weights as float16, whole or not at all; an earlier one in its place is replaced at the end.

    Raises:
        ValueError: if something else is in its place.
        Failure: if it can't be written.
    """
    folder = folder.absolute()
    check_export(folder)
    partial, old = folder.with_name(f".{folder.name}.{os.getpid()}"), folder.with_name(f".{folder.name}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        pipeline_of(network.to("cpu", torch.float16), recipe).save_pretrained(partial)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise Failure(
            f"the stage could not be written to {folder}: {reason}; its training is kept, run the command again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
