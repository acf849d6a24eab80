"""The trained network as a stage: which pipeline it gets, and its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascade.files import complete_folder
from cascade.schedulers import DEFAULT, scheduler_class
from cascade.stages.noise import LinearSchedule, betas_of
from cascade.stages.regression import RegressionPipeline
from cascade.stages.saved import INDEX
from cascade.stages.stage import StagePipeline
from cascade.stages.training import Recipe
from cascade.stages.unet import UNet
from cascade.training.recipes import pipeline_class


def pipeline_of(network: UNet, recipe: Recipe, class_names: Sequence[str] | None = None) -> StagePipeline:
    """The trained network as a stage, with the scheduler and the settings that its recipe names; class names None = not known."""
    id2label = None if class_names is None else dict(enumerate(class_names))
    stage: Any = pipeline_class(recipe.network, recipe.objective)
    if stage is RegressionPipeline:
        return RegressionPipeline(network, id2label)
    schedule = recipe.objective.law.schedule()
    betas = betas_of(schedule, schedule.num_steps) if isinstance(schedule, LinearSchedule) else betas_of(schedule)
    settings = dict(recipe.sampling)
    kind = scheduler_class(settings.pop("scheduler", DEFAULT))
    # linspace: from the noisiest level on; some schedulers would begin a step below it
    trained = {"trained_betas": betas, "prediction_type": network.prediction_type, "timestep_spacing": "linspace"}
    scheduler = kind(num_train_timesteps=len(betas), **trained)
    return stage(network, scheduler, id2label=id2label, **settings)


def check_export(folder: Path) -> None:
    """Raise ValueError unless a stage may be written there: a new folder, an empty one, or an earlier stage, to be replaced."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / INDEX).is_file()):
        raise ValueError(f"{folder} exists and is not the folder of a stage, so it is not replaced; choose another folder")


def export_stage(network: UNet, recipe: Recipe, folder: Path, class_names: Sequence[str] | None) -> None:
    """Write the stage, weights as float16, whole or not at all; an earlier one in its place is replaced at the end.

    Raises ValueError if something else is in its place, OSError if it can't be written.
    """
    check_export(folder)
    try:
        with complete_folder(folder) as partial:
            pipeline_of(network.half().cpu(), recipe, class_names).save_pretrained(partial)
    except OSError as error:
        raise OSError(
            f"the stage could not be written to {folder}: {error.strerror or error}; its training is kept, run the same again"
        ) from error
