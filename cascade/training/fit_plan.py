"""What `fit` is going to do: which stages the pictures allow, how large their networks are, and how the time is shared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cascade.data.folder import FEWEST_TO_HOLD_OUT
from cascade.data.looking import Look
from cascade.folder import Manifest
from cascade.models import resolve
from cascade.schedulers import SCHEDULERS
from cascade.stages.saved import INDEX, read_json
from cascade.stages.training import Recipe
from cascade.stages.training.processes import this_process
from cascade.stages.training.start_from import DEFAULTS
from cascade.training.forecast import DTYPES, FORWARDS, convolution_rate, seconds_per_image, training_cost
from cascade.training.recipes import load_recipe

FEWEST_PICTURES = 10
MOST_TOO_SMALL = 0.25
"""Share of the pictures that may be too small for a stage, or unusable."""

BASE_SIZE, SR_SIZES = 64, ((256, 128), (1024, 512))
"""Sides of the pictures of the base, and of each refining stage: the larger if the pictures allow it, else the smaller."""

SHARES = {1: (1.0,), 2: (0.65, 0.35), 3: (0.6, 0.25, 0.15)}
"""Of the time for training, by the number of stages. The base has most: a refining stage begins as bicubic interpolation."""

FINISH_SHARE, LEAST_FINISH, MOST_FINISH = 0.06, 15.0, 600.0
"""Of all time, and in seconds: what sheet, measures and card take at the end."""

FEWEST_STEPS, BATCH, BATCH_ON_ACCELERATOR = 200, 16, 64
HOLD_OUT = 0.1
CROP, TILE = 24, 256
"""Sides: of a refining stage's training crops in pixels of the small picture, and of the tiles in which it is sampled."""

DRAWING = "tiny-imagenet/sr256"
"""The recipe whose objective and noise a refining stage has that is started from and draws details (`network.detail_std`)."""

FEW_PICTURES = 200
CHECKPOINT_SECONDS = 120
FINE_TUNING_RATE = 2e-4
"""Learning rate of a run that starts from trained weights, 5e-4 without."""


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """A size of network that a stage can have.

    pictures: The least for which it is taken.
    """

    name: str
    network: Mapping[str, Any]
    pictures: int = 0


BASES = (
    NetworkSize("largest", {"channels": [128, 256, 320], "blocks": [2, 3, 2], "attention_sizes": [16, 8]}, 20_000),
    NetworkSize("large", {"channels": [64, 128, 320], "blocks": [2, 3, 2]}, 1000),
    NetworkSize("medium", {"channels": [64, 128, 192], "blocks": [1, 2, 2]}),
    NetworkSize("small", {"channels": [32, 64, 128], "blocks": [1, 2, 2]}),
)
REFINERS = (
    NetworkSize("medium", {"channels": [64, 128, 192], "blocks": [1, 1, 2]}),  # that of emoji/sr256
    NetworkSize("small", {"channels": [32, 64, 128], "blocks": [1, 1, 1]}),
)
IMAGES_WANTED = 60_000
"""Training images that a network has to see in its time; the smallest one is taken if none does."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage that is going to be trained.

    name: "base", or "sr" and the side of its images.
    recipe: Of a length that doesn't matter: it is fitted to the time.
    share: Of the time for training.
    network: Name of its network's size, or of the model that it starts from as in "emoji's".
    parameters: Of the network.
    images_per_second: Of a few real steps on this machine.
    pictures: Share of all that it can use.
    """

    name: str
    recipe: Recipe
    share: float
    network: str
    parameters: int
    images_per_second: float
    pictures: float


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What a fit is going to do.

    seconds: In all.
    finish: Of them, at the end, for sheet, measures and card.
    remarks: On the pictures, a sentence each.
    """

    look: Look
    stages: tuple[PlannedStage, ...]
    seconds: float
    finish: float
    device: str
    remarks: tuple[str, ...]


def plan_fit(found: Look, seconds: float, start_from: str | None = None, spent: float = 0.0) -> FitPlan:
    """Plan a fit.

    Args:
        found: The pictures.
        seconds: That it may take in all.
        start_from: A model, as `cascade.models.resolve` takes it, whose stages the training starts from; None = new networks.
        spent: Seconds that are over already.

    Raises:
        ValueError: if the pictures are too few or too small, the time is too short (it says what the least is), or there is no
            such model or none that can be trained on.
    """
    check_pictures(found)
    finish = min(MOST_FINISH, max(LEAST_FINISH, FINISH_SHARE * seconds))
    training = seconds - finish - spent
    beginnings = None if start_from is None else _stages_of(start_from)
    sizes = _sizes(found) if beginnings is None else _sizes_from(found, beginnings, str(start_from))
    stages, least = [], 0.0
    for (size, low_res_size), share in zip(sizes, SHARES[len(sizes)], strict=True):
        beginning = None if beginnings is None else beginnings[size]
        stage = _stage(found, size, low_res_size, share, max(0.0, training) * share, beginning, start_from)
        stages.append(stage)
        batch = stage.recipe.phases[-1].batch_size
        least = max(least, FEWEST_STEPS * batch / stage.images_per_second / share)
    if training < least:
        needed = max(least + spent + LEAST_FINISH, (least + spent) / (1 - FINISH_SHARE))
        needed = 30 * math.ceil(needed / 30)
        raise ValueError(
            f"{seconds:.0f} s are too short: on this machine a fit of these pictures takes at least {needed} s for"
            f" {FEWEST_STEPS} steps of each stage, and hours for pictures that look like something"
        )
    return FitPlan(found, tuple(stages), seconds, finish, this_process().device.type, tuple(_remarks(found, stages)))


def check_pictures(found: Look) -> None:
    """Raise ValueError unless a base can learn these pictures."""
    empty = [name for name, count in zip(found.class_names, found.counts, strict=True) if not count]
    if empty:
        raise ValueError(f"class {empty[0]!r} holds no pictures; put some into its folder, or remove it")
    if found.total < FEWEST_PICTURES:
        are = "is 1 picture" if found.total == 1 else f"are {found.total} pictures"
        raise ValueError(f"there {are} in {found.source}, and a model needs at least {FEWEST_PICTURES}")
    usable = found.sides[found.sides > 0]
    if not len(usable):
        raise ValueError(f"none of the {found.total:,} pictures in {found.source} can be read; `cascade data check` tells why")
    if usable.max() < BASE_SIZE:
        raise ValueError(
            f"all pictures in {found.source} are under {BASE_SIZE} px, the largest has a shorter side of {usable.max()} px; a"
            f" base learns pictures of {BASE_SIZE} px and more"
        )
    if (share := found.share(BASE_SIZE)) < 1 - MOST_TOO_SMALL:
        raise ValueError(
            f"only {share:.0%} of the pictures in {found.source} can be used at {BASE_SIZE} px; remove the others, which"
            f" `cascade data check {found.source} --size {BASE_SIZE}` counts and names"
        )


def _sizes(found: Look) -> list[tuple[int, int | None]]:
    """Side of each stage's pictures, and of the small ones that it refines."""
    sizes: list[tuple[int, int | None]] = [(BASE_SIZE, None)]
    for wanted in SR_SIZES:
        size = next((one for one in wanted if found.share(one) >= 1 - MOST_TOO_SMALL), None)
        if size is None:
            break
        sizes.append((size, sizes[-1][0]))
        if size != wanted[0]:
            break
    return sizes


def _sizes_from(found: Look, stages: Mapping[int, Path], model: str) -> list[tuple[int, int | None]]:
    """The same of the model that is started from: its stages as far as the pictures are large enough."""
    base = min(stages)
    if found.share(base) < 1 - MOST_TOO_SMALL:
        raise ValueError(f"the base of {model} makes {base} px, and only {found.share(base):.0%} of the pictures are as large")
    fitting = [size for size in sorted(stages) if found.share(size) >= 1 - MOST_TOO_SMALL][: max(SHARES)]
    return [(size, read_json(stages[size] / "unet" / "config.json").get("low_res_size")) for size in fitting]


def _stages_of(model: str) -> dict[int, Path]:
    """Folders of a model's stages by the side of their images. Raises ValueError if they aren't ones that can be trained."""
    folder = resolve(model)
    found = {}
    for entry in Manifest.read(folder).stages:
        config = read_json(folder / entry.folder / "unet" / "config.json") if entry.pipeline != "RegressionPipeline" else {}
        if config.get("_class_name") != "UNet":
            what = entry.pipeline if entry.pipeline not in ("BasePipeline", "SR3Pipeline") else config.get("_class_name")
            raise ValueError(
                f"a fit can't start from {model}: its stage {entry.name!r} is a {what}, and only networks that `cascade train`"
                " made can be trained on"
            )
        found[entry.size] = folder / entry.folder
    return found


def _stage(
    found: Look, size: int, low_res_size: int | None, share: float, seconds: float, beginning: Path | None, model: str | None
) -> PlannedStage:
    """One stage: with the network that it starts from, or the largest that sees enough images in its time."""
    if beginning is not None:
        recipe = _recipe(found, size, low_res_size, _network_in(beginning), beginning)
        return _planned(found, recipe, share, f"{Path(str(model)).name}'s")
    possible = [one for one in (BASES if low_res_size is None else REFINERS) if found.total >= one.pictures]
    for one in possible:
        recipe = _recipe(found, size, low_res_size, one.network, None)
        last = one is possible[-1]
        if not last and seconds * _rate_at_best(found, recipe) < IMAGES_WANTED:
            continue  # nothing that large is built and timed
        stage = _planned(found, recipe, share, one.name)
        if last or seconds * stage.images_per_second >= IMAGES_WANTED:
            break
    return stage


def _planned(found: Look, recipe: Recipe, share: float, network: str) -> PlannedStage:
    """The stage with the speed of real steps, and checkpoints as often as that speed makes sensible."""
    cost, classes = training_cost(recipe, _classes(found, recipe)), _classes(found, recipe)
    ends = [0, *(phase.images for phase in recipe.phases)]
    seconds = sum(
        (end - start) * seconds_per_image(recipe, classes, phase)
        for start, end, phase in zip(ends, ends[1:], recipe.phases, strict=False)
    )
    rate = recipe.total_images / seconds
    recipe = replace(recipe, checkpoint_every=max(1, round(CHECKPOINT_SECONDS * rate)))
    name = "base" if recipe.network.get("low_res_size") is None else f"sr{recipe.picture_size}"
    return PlannedStage(name, recipe, share, network, cost.parameters, rate, found.share(recipe.picture_size))


def _rate_at_best(found: Look, recipe: Recipe) -> float:
    """Images per second of training at the full rate of plain convolutions, which no network reaches."""
    cost = training_cost(recipe, _classes(found, recipe))
    rate = convolution_rate(DTYPES[recipe.optimization.precision], this_process().device)
    area = cost.phase.size**2 * recipe.total_images
    ends = [0, *(phase.images for phase in recipe.phases)]
    seen = sum((end - start) * phase.size**2 for start, end, phase in zip(ends, ends[1:], recipe.phases, strict=False))
    return rate / (2 * FORWARDS * cost.image.multiply_adds * seen / area)


def _classes(found: Look, recipe: Recipe) -> int | None:
    return recipe.num_classes(len(found.class_names))


def _network_in(stage: Path) -> dict[str, Any]:
    """The network of a saved stage, as a recipe has it."""
    saved = read_json(stage / "unet" / "config.json")
    return {name: saved[name] for name in DEFAULTS if name in saved and name not in ("self", "num_classes", "null_class")}


def _sampling_in(stage: Path) -> dict[str, Any]:
    """How a saved stage is sampled, as a recipe has it."""
    saved = read_json(stage / INDEX)
    settings: dict[str, Any] = {
        name: saved[name] for name in ("num_inference_steps", "guidance_scale", "aug_level") if name in saved
    }
    short = {kind: name for name, kind in SCHEDULERS.items()}.get((saved.get("scheduler") or [None, None])[1])
    return settings if short is None else settings | {"scheduler": short}


def _recipe(found: Look, size: int, low_res_size: int | None, network: Mapping[str, Any], beginning: Path | None) -> Recipe:
    """The recipe of a stage of these sizes, with the values that follow from pictures, machine and beginning."""
    few = len(found.class_names) == 1 or not found.labelled  # then there is nothing to guide to
    batch = BATCH if this_process().device.type == "cpu" else BATCH_ON_ACCELERATOR
    values: dict[str, Any] = {"data.source": found.source, "data.max_damaged": min(1.0, 1.1 - found.share(size))}
    values["data.hold_out"] = HOLD_OUT if holds_out(found) and found.held_out is None else 0.0
    if not holds_out(found):
        values["validation"] = None
    if beginning is not None:
        values |= {"start_from": str(beginning), "optimization.learning_rate": FINE_TUNING_RATE}
        values |= {f"sampling.{name}": value for name, value in _sampling_in(beginning).items()}
    if low_res_size is None:
        values |= {"data.classes": None if found.labelled else 0}
        values |= {"objective.label_dropout": 0.0, "sampling.guidance_scale": 1.0} if few else {}
        shapes = {"network.sample_size": size} | {f"network.{name}": value for name, value in network.items()}
        if beginning is not None:
            values["phases"] = [{"size": size, "images": 1_000_000, "batch_size": batch}]
        else:
            values |= {f"phases.{place}.batch_size": batch for place in (0, 1)}
        return load_recipe("fit/base64", values | shapes)
    factor = size // low_res_size
    shapes = {"name": f"fit/sr{size}", "network.sample_size": size, "network.low_res_size": low_res_size}
    shapes |= {"network.patch_size": factor} | {f"network.{name}": value for name, value in network.items()}
    full = DEFAULTS | {name.removeprefix("network."): value for name, value in shapes.items() if name.startswith("network.")}
    step = math.lcm(factor, full["patch_size"] * 2 ** (len(full["channels"]) - 1))
    crop = max(step, CROP * factor // step * step)
    shapes["phases"] = [{"size": min(size, crop), "images": 1_000_000, "batch_size": batch}]
    shapes["objective.law"] = {"kind": "cosine", "size": SR_SIZES[0][0]}
    if beginning is not None and read_json(beginning / "unet" / "config.json").get("num_classes") is not None and found.labelled:
        shapes |= {"data.classes": None, "objective.label_dropout": 0.1}
    if size > TILE:
        shapes |= {"sampling.tile_size": TILE, "samples.count": 4}
    if not full["aug_level"]:
        shapes |= {"augmentation.noise": 0.0, "augmentation.clean": 0.0, "sampling.aug_level": 0.0}
    recipe = load_recipe("fit/sr256", values | shapes)
    if full["detail_std"] is None:
        return recipe
    drawing = load_recipe(DRAWING)
    objective = replace(drawing.objective, label_dropout=recipe.objective.label_dropout)
    augmentation = replace(drawing.augmentation, reduction="area") if full["aug_level"] else recipe.augmentation
    return replace(recipe, objective=objective, augmentation=augmentation)


def holds_out(found: Look) -> bool:
    """Whether some pictures are kept for validation and measures: the set does it, or a class has enough."""
    return found.held_out is not None or max(found.counts) >= FEWEST_TO_HOLD_OUT


def _remarks(found: Look, stages: Sequence[PlannedStage]) -> Iterator[str]:
    if found.stray:
        yield f"{found.stray:,} pictures beside the class folders are passed over"
    few = [name for name, count in zip(found.class_names, found.counts, strict=True) if count < FEWEST_TO_HOLD_OUT]
    if not holds_out(found):
        yield f"nothing is held out, so nothing is measured: no class has {FEWEST_TO_HOLD_OUT} pictures"
    elif few and found.held_out is None:
        yield f"{len(few):,} classes have fewer than {FEWEST_TO_HOLD_OUT} pictures, of which none is held out"
    if found.total < FEW_PICTURES:
        yield f"{found.total:,} pictures are few: the model will learn them by heart rather than what they have in common"
    largest = stages[-1].recipe.picture_size
    bigger = next((size for size in sorted(SR_SIZES[0]) if size > largest), None)
    if bigger is not None and found.share(bigger) < 1 - MOST_TOO_SMALL:
        needed = f"a stage of that size needs {1 - MOST_TOO_SMALL:.0%}"
        yield f"{found.share(bigger):.0%} of the pictures have a shorter side of {bigger} px, and {needed}"
