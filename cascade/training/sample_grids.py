"""Grids of samples that a training run makes of its network: the same classes, seeds and small images every time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cascade.eval.pictures import open_picture
from cascade.files import complete
from cascade.png import grid
from cascade.stages.base import BasePipeline
from cascade.stages.training import Recipe
from cascade.stages.training.examples import PictureSource
from cascade.stages.training.journal import SAMPLES
from cascade.stages.training.odd_pictures import DamagedPicture
from cascade.stages.unet import UNet
from cascade.training.export import pipeline_of

LARGEST_SHOWN = 512
"""Pixels: of larger pictures the middle is shown, at full resolution."""

CONTACT_SHEET = "samples.png"
"""In the run's folder: the newest grid, and above it what its first row was like before."""

MOST_BEFORE = 6
"""Earlier grids on a contact sheet, spread evenly over the run."""


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


def with_contact_sheet(
    make: Callable[[UNet, int], Image.Image | None], recipe: Recipe, run: Path
) -> Callable[[UNet, int], Image.Image | None]:
    """The maker of grids, which also writes a contact sheet of them into the run's folder; those before are in `samples/`."""
    cell = min(recipe.network["sample_size"], LARGEST_SHOWN)

    def made(network: UNet, images_seen: int) -> Image.Image | None:
        newest = make(network, images_seen)
        if newest is not None:
            sheet = contact_sheet([*_before(run / SAMPLES, images_seen), (images_seen, newest)], cell)
            with complete(run / CONTACT_SHEET) as file:
                sheet.save(file, "PNG")
        return newest

    return made


def contact_sheet(grids: list[tuple[int, Image.Image]], cell: int) -> Image.Image:
    """First rows of the grids, whose pictures have sides of `cell`, then the whole of the last, each with its images seen."""
    parts = [(seen, sheet.crop((0, 0, sheet.width, min(cell, sheet.height)))) for seen, sheet in grids[:-1]]
    parts.append(grids[-1])
    font = ImageFont.load_default(14)
    line, gap = 20, 8
    height = sum(line + part.height for _, part in parts) + gap * (len(parts) - 1)
    sheet = Image.new("RGB", (max(160, *(part.width for _, part in parts)), height), "white")
    top = 0
    for seen, part in parts:
        ImageDraw.Draw(sheet).text((2, top + 2), f"{seen:,} images", "black", font)
        sheet.paste(part, (0, top + line))
        top += line + part.height + gap
    return sheet


def _before(folder: Path, images_seen: int) -> Iterator[tuple[int, Image.Image]]:
    """Some of the grids that a run has made of fewer images, the first and the last among them."""
    names = (path.stem for path in folder.glob("*.png") if re.fullmatch(r"\d{12}", path.stem) and not path.is_symlink())
    earlier = sorted(int(name) for name in names if int(name) < images_seen)
    places = np.unique(np.linspace(0, len(earlier) - 1, min(MOST_BEFORE, len(earlier))).round().astype(int))
    for seen in [earlier[place] for place in places]:
        with suppress(Exception), open_picture(folder / f"{seen:012d}.png", ("PNG",)) as opened:  # damaged ones are left out
            yield seen, opened.convert("RGB")


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
