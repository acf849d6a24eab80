"""What `cascade train` does around the training loop: the data it names, and the finished stage as a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image, UnidentifiedImageError

from cascade.cli.errors import Failure
from cascade.drawings import area_average, cached_array, may_flip
from cascade.labels import EMOJI
from stages.base import BasePipeline
from stages.noise import CosineLaw, CosineSchedule, LinearSchedule, NoiseLaw, Schedule, SR3Law, betas_of
from stages.pipeline import low_res_size_of
from stages.sr3 import SR3Pipeline
from stages.training import PictureSet, Recipe
from stages.unet import UNet

DRAWINGS = "drawings"
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def picture_size(recipe: Recipe) -> int:
    """Side of the pictures that the recipe is trained on: an SR3 stage makes its crops and small images from whole ones."""
    size: int = recipe.network["sample_size"]
    return size if recipe.network.get("low_res_size") else max(phase.size for phase in recipe.phases)


def class_names(recipe: Recipe) -> tuple[str, ...]:
    """Names of the classes in the recipe's data, in the order of their labels.

    Raises:
        ValueError: if there is no such data, or it has no classes.
    """
    if recipe.data == DRAWINGS:
        return EMOJI.names
    folder = Path(recipe.data)
    if not folder.is_dir():
        raise ValueError(f"data is {recipe.data!r}, expected {DRAWINGS!r} or a folder with one folder of pictures for each class")
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise ValueError(f"{folder} holds no folders, expected one folder of pictures for each class")
    return names


def load_pictures(recipe: Recipe, progress: Callable[[int, int], None]) -> PictureSet:
    """The recipe's data at the size that it is trained on. `progress` gets (pictures ready, pictures in all) while it is made.

    Raises:
        ValueError: if there is no such data, or a picture can't be used.
        OSError: if the rendered drawings can't be stored.
    """
    names, size = class_names(recipe), picture_size(recipe)
    if recipe.data == DRAWINGS:
        pictures, labels = cached_array(size, "train", progress=progress)
        return PictureSet(pictures, labels, names, tuple(may_flip(name) for name in names))
    folder = Path(recipe.data)
    found = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _ENDINGS and not path.name.startswith(".")
    ]
    if not found:
        raise ValueError(f"the folders in {folder} hold no pictures, expected files ending in {', '.join(_ENDINGS)}")
    array = np.empty((len(found), size, size, 3), np.uint8)
    for place, (path, _) in enumerate(found):
        array[place] = _picture(path, size)
        progress(place + 1, len(found))
    return PictureSet(array, np.array([label for _, label in found], np.int64), names, (True,) * len(names))


def _picture(path: Path, size: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} can't be read as a picture; remove it from the data") from error
    height, width, _ = pixels.shape
    if height != width or height < size:
        raise ValueError(f"{path} is {width}x{height}, expected a square picture of at least {size} px")
    return pixels if height == size else area_average(pixels, size)


def schedule_of(law: NoiseLaw) -> Schedule:
    """The schedule that a stage trained under this law is sampled with by default."""
    if isinstance(law, SR3Law):
        return LinearSchedule(beta_start=law.beta_start, beta_end=law.beta_end, num_steps=law.num_steps)
    return CosineSchedule(size=law.size) if isinstance(law, CosineLaw) else CosineSchedule()


def pipeline_of(network: UNet, recipe: Recipe) -> BasePipeline | SR3Pipeline:
    """The trained network as a stage with its default sampler, DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095)."""
    schedule = schedule_of(recipe.objective.law)
    betas = betas_of(schedule, schedule.num_steps) if isinstance(schedule, LinearSchedule) else betas_of(schedule)
    scheduler: Any = DPMSolverMultistepScheduler(
        num_train_timesteps=len(betas), trained_betas=betas, prediction_type=network.prediction_type
    )
    stage = BasePipeline if low_res_size_of(network) is None else SR3Pipeline
    return stage(network, scheduler, **recipe.sampling)


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
