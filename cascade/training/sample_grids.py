"""Grids of samples that a training run makes of its network: the same classes, seeds and small images every time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from cascade.png import grid
from cascade.stages.base import BasePipeline
from cascade.stages.training import Recipe
from cascade.stages.training.examples import PictureSource
from cascade.stages.training.odd_pictures import DamagedPicture
from cascade.stages.unet import UNet
from cascade.training.export import pipeline_of

LARGEST_SHOWN = 512
"""Pixels: of larger pictures the middle is shown, at full resolution."""


def grid_maker(
    recipe: Recipe, pictures: PictureSource, on_message: Callable[[str], None]
) -> Callable[[UNet, int], Image.Image | None]:
    """What makes a grid of samples with a network after a number of images; its pictures are those of the stage's own pipeline.

    A base stage makes pictures of classes spread evenly over all. An SR3 stage refines some of `pictures`, spread likewise: three
    side by side are what it was given, what it made, and the original. `on_message` is told if the network makes no pictures, as
    one that has diverged does; there is no grid then.
    """
    count, classes = recipe.samples.count, len(pictures.class_names)
    spread = [i * classes // count if count <= classes else i % classes for i in range(count)]
    fixed = _readable(pictures, recipe) if recipe.network.get("low_res_size") else []

    def make(network: UNet, images_seen: int) -> Image.Image | None:
        pipeline = pipeline_of(network, recipe)
        pipeline.set_progress_bar_config(disable=True)
        try:
            is_base = isinstance(pipeline, BasePipeline)
            return _made(pipeline, spread, recipe) if is_base else _refined(pipeline, fixed, recipe)
        except RuntimeError as error:
            on_message(f"no samples after {images_seen} images: {error}")
            return None

    return make


def _readable(pictures: PictureSource, recipe: Recipe) -> list[tuple[np.ndarray, int]]:
    """As many pictures as a grid shows, with their labels: of different classes as far as the first few hundred are."""
    count = recipe.samples.count
    order = [int(place) for place in pictures.order(recipe.seed, 0)[: 20 * count]]
    firsts = {pictures.label(place): place for place in reversed(order)}.values()
    found: list[tuple[np.ndarray, int]] = []
    for place in dict.fromkeys([*firsts, *order]):
        if len(found) == count:
            break
        try:
            found.append((pictures.read(place).pixels, pictures.label(place)))
        except DamagedPicture:
            continue
    return sorted(found, key=lambda one: one[1])


def _made(pipeline: Any, labels: list[int], recipe: Recipe) -> Image.Image:
    made = pipeline(num_images=len(labels), **_arguments(pipeline, labels, recipe)).images
    return _sheet([[image] for image in made])


def _refined(pipeline: Any, pictures: list[tuple[np.ndarray, int]], recipe: Recipe) -> Image.Image:
    originals, labels = np.stack([pixels for pixels, _ in pictures]), [label for _, label in pictures]
    small = ((pipeline.low_res_of(originals) / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    made = pipeline(originals, **_arguments(pipeline, labels, recipe)).images
    shown = [Image.fromarray(given).resize((pipeline.size, pipeline.size), Image.Resampling.NEAREST) for given in small]
    return _sheet([list(group) for group in zip(shown, made, map(Image.fromarray, originals), strict=True)])


def _arguments(pipeline: Any, labels: list[int], recipe: Recipe) -> dict[str, Any]:
    """Classes, where the pipeline knows any; few steps and a seed for each picture, where it samples at all."""
    arguments: dict[str, Any] = {} if pipeline.unet.num_classes is None else {"class_labels": labels}
    if pipeline.scheduler is not None:
        arguments["num_inference_steps"] = min(recipe.samples.steps, pipeline.config["num_inference_steps"])
        arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in range(len(labels))]
    return arguments


def _sheet(groups: list[list[Image.Image]]) -> Image.Image:
    """Groups of pictures of one size, each group side by side, on a sheet about as wide as high."""
    columns, width = max(1, round(math.sqrt(len(groups) / len(groups[0])))), groups[0][0].width
    edge, size = max(0, width - LARGEST_SHOWN) // 2, min(width, LARGEST_SHOWN)
    shown = [[image.crop((edge, edge, edge + size, edge + size)) for image in group] for group in groups]
    return grid([sum(shown[i : i + columns], []) for i in range(0, len(shown), columns)])
