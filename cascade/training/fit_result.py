"""What a fit ends in: the model's folder with its sheet of samples, its figures on held-out pictures, its curves and its card."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cascade import png
from cascade.classes import Vocabulary
from cascade.composed import compose
from cascade.data import open_held_out, open_pictures
from cascade.eval.images import image_array
from cascade.eval.metrics import kernel_distance
from cascade.eval.paired import psnr
from cascade.eval.scoring import feature_set
from cascade.files import complete, complete_folder, write_text
from cascade.measure.named import extractor_of
from cascade.measure.super_resolution import bicubic, by_stage, low_resolution
from cascade.pipeline import CascadePipeline
from cascade.progress import OnProgress
from cascade.runs.share import without_bars
from cascade.stage_sampling import StageSampling
from cascade.stages.stage import default_batch_size
from cascade.stages.training.examples import PictureSource
from cascade.stages.training.journal import LOG, read_log
from cascade.stages.training.odd_pictures import DamagedPicture
from cascade.training.card import card_of
from cascade.training.curves import figure
from cascade.training.fit_plan import FitPlan, PlannedStage
from cascade.training.recipes import load_recipe, recipe_to_yaml
from cascade.training.stage import RECIPE

SHEET, CURVES, RECIPES = "samples.png", "curves.png", "recipes"
"""Files and folder in that of the model, beside its stages."""

SHOWN_CLASSES, SHOWN_OF_EACH, LARGEST_SHOWN = 8, 4, 256
MOST_SAMPLES, MOST_ENLARGED = 100, 32
FEWEST_MEASURED = 10
"""Held-out pictures without which no distance is measured."""


@dataclass(frozen=True, slots=True)
class Enlarged:
    """PSNR in dB of held-out pictures that were made small and enlarged again, means over `pictures`."""

    pictures: int
    psnr: float
    bicubic: float


@dataclass(frozen=True, slots=True)
class FitFigures:
    """What was measured on held-out pictures.

    held_out: How many there are.
    samples, distance: Of the base's samples, and their kernel distance x 1000 to the pictures that were trained on, by
        EfficientNet-Lite's features; None = too few pictures are held out.
    floor: The same distance of the held-out pictures.
    enlarged: By the names of the refining stages.
    """

    held_out: int = 0
    samples: int = 0
    distance: float | None = None
    floor: float | None = None
    enlarged: Mapping[str, Enlarged] = field(default_factory=dict)


def finish(
    runs: Path,
    out: Path,
    plan: FitPlan,
    record: Mapping[str, Any],
    on_progress: OnProgress,
    on_message: Callable[[str], None],
    spent: Callable[[], float],
) -> tuple[FitFigures, Path]:
    """Compose the trained stages, draw and measure, and write the model's folder; its figures and the file of its sheet.

    The measuring takes what is left of the plan's time, and is the same whatever that was but for the number of samples.
    """
    end = time.monotonic() + max(plan.finish / 2, plan.seconds - spent() - 2)
    names = None if not plan.look.labelled else list(plan.look.class_names)
    cascade = compose(*(runs / stage.name for stage in plan.stages), name=out.absolute().name)
    cascade.to(plan.device)
    with without_bars(cascade):
        sheet, rows, origin = _sheet(cascade, out, on_progress)
        figures = _figures(cascade, plan, end, on_progress)
    logs = {stage.name: read_log(runs / stage.name / LOG) for stage in plan.stages}
    drawn = bool(find_spec("matplotlib"))
    recipes = {stage.name: load_recipe(runs / stage.name / RECIPE) for stage in plan.stages}
    curves = CURVES if drawn else None
    cascade.card = card_of(cascade, out.absolute().name, plan, record, recipes, figures, logs, rows, spent(), curves)
    cascade.to("cpu")
    with complete_folder(out) as partial:
        cascade.save_pretrained(partial)
        png.write(partial / SHEET, sheet, origin)
        if drawn:
            with complete(partial / CURVES) as file:
                figure(logs).savefig(file, format="png")
        for stage, recipe in recipes.items():
            write_text(partial / RECIPES / f"{stage}.yaml", recipe_to_yaml(_shareable(recipe, record)))
    if names is None:
        on_message("its pictures had no classes, so it is asked for none")
    return figures, out / SHEET


def _shareable(recipe: Any, record: Mapping[str, Any]) -> Any:
    """The recipe without this machine's folders: the pictures by the name of their folder, the beginning by that of its model."""
    start = None if recipe.start_from is None else Path(str(record["start_from"])).name
    checks = recipe.validation
    if checks is not None and checks.source is not None:
        checks = replace(checks, source=Path(checks.source).name)
    data = replace(recipe.data, source=Path(recipe.data.source).name)
    return replace(recipe, data=data, start_from=start, validation=checks)


def _sheet(cascade: CascadePipeline, out: Path, on_progress: OnProgress) -> tuple[Image.Image, list[str], png.Origin]:
    """Some pictures of some classes, a row for each, what the rows are, and what the file says of itself."""
    size = max(one for one in cascade.sizes.values() if one <= LARGEST_SHOWN or one == min(cascade.sizes.values()))
    count = cascade.num_classes
    labels = [] if count is None else sorted({i * count // min(count, SHOWN_CLASSES) for i in range(min(count, SHOWN_CLASSES))})
    classes: Vocabulary | None = cascade.classes
    names = [str(label) if classes is None else classes.names[label] for label in labels]
    rows: list[list[Image.Image]] = []
    for row, label in enumerate(labels or [None]):
        on_progress("pictures to look at", row * SHOWN_OF_EACH, SHOWN_OF_EACH * max(1, len(labels)))
        made: Any = cascade(label, num_images_per_class=SHOWN_OF_EACH, seeds=list(range(SHOWN_OF_EACH)), size=size)
        rows.append(made.images)
    on_progress("pictures to look at", SHOWN_OF_EACH * len(rows), SHOWN_OF_EACH * len(rows))
    command = ["generate", *(word for label in labels for word in ("--class", str(label)))]
    command += ["-n", str(SHOWN_OF_EACH), "--seed", "0", "--grid", "--size", str(size), "--model", out.absolute().name]
    settings = cascade.described(cascade.stages_to(size), None, None)
    origin = png.Origin(
        " ".join(command), cascade.name, tuple(names), tuple(labels), tuple(range(SHOWN_OF_EACH)), settings
    )  # fmt: skip
    return png.grid(rows), names, origin


def _figures(cascade: CascadePipeline, plan: FitPlan, end: float, on_progress: OnProgress) -> FitFigures:
    """What can be measured until `end`, by the clock, on the pictures that are held out; nothing where none are."""
    base, *refining = plan.stages
    if base.recipe.validation is None:
        return FitFigures()
    enlarged = {}
    for stage in refining:
        held_out = _held_out(stage)
        real, labels = _read(held_out, MOST_ENLARGED if stage.recipe.picture_size <= LARGEST_SHOWN else MOST_ENLARGED // 4)
        if len(real):
            enlarged[stage.name] = _enlarged(cascade, stage, real, labels, on_progress)
    held_out = _held_out(base)
    found = FitFigures(held_out=len(held_out), enlarged=enlarged)
    real, _ = _read(held_out, MOST_SAMPLES)
    if len(real) < FEWEST_MEASURED:
        return found
    trained, _ = _read(open_pictures(base.recipe.data, base.recipe.picture_size), MOST_SAMPLES)
    samples = _samples(cascade, len(real), end, on_progress)
    if len(samples) < FEWEST_MEASURED:
        return found
    network = extractor_of("efficientnet-lite0", None, str(cascade.device))
    sets = (samples, real, trained)
    of_samples, of_real, of_trained = (feature_set(image_array(one), network, crop_rule=None).features for one in sets)
    return replace(
        found,
        samples=len(samples),
        distance=1000 * float(kernel_distance(of_samples, of_trained)),
        floor=1000 * float(kernel_distance(of_real, of_trained)),
    )


def _enlarged(
    cascade: CascadePipeline, stage: PlannedStage, real: np.ndarray, labels: list[int], on_progress: OnProgress
) -> Enlarged:
    """Held-out pictures made small and enlarged again, by the stage without augmentation and by bicubic interpolation."""
    network = stage.recipe.network
    small = low_resolution(real, network["low_res_size"])
    exact = {stage.name: StageSampling(aug_level=0.0)} if network.get("aug_level") else None
    enlarge, asks = by_stage(cascade, stage.name, exact, None), cascade.stages[stage.name].unet.num_classes is not None
    made = []
    for i in range(len(real)):
        on_progress(f"measuring {stage.name}", i, len(real))
        made += enlarge([Image.fromarray(small[i])], [labels[i]] if asks else None, [i])
    on_progress(f"measuring {stage.name}", len(real), len(real))
    ours = psnr(np.stack([np.asarray(one) for one in made]), real)
    return Enlarged(len(real), float(ours.mean()), float(psnr(bicubic(small, real.shape[1]), real).mean()))


def _samples(cascade: CascadePipeline, count: int, end: float, on_progress: OnProgress) -> np.ndarray:
    """Samples of the base, uint8 [N, S, S, 3], of all classes alike: as many as `count`, or as are made until `end`."""
    size, classes = min(cascade.sizes.values()), cascade.num_classes
    step = max(8, default_batch_size(str(cascade.device), size))
    made: list[Image.Image] = []
    while len(made) < count and (time.monotonic() < end or len(made) < FEWEST_MEASURED):
        on_progress("samples to measure", len(made), count)
        seeds = list(range(100 + len(made), 100 + min(len(made) + step, count)))
        labels = None if classes is None else [seed % classes for seed in seeds]
        many: Any = {"num_images_per_class": len(seeds)} if labels is None else {}
        made += cascade(labels, seeds=seeds, size=size, **many).images
    on_progress("samples to measure", len(made), len(made))
    return np.stack([np.asarray(one) for one in made])


def _held_out(stage: PlannedStage) -> PictureSource:
    """The pictures that a stage's run is validated on, at its size."""
    data = stage.recipe.data
    return open_held_out(data, None, open_pictures(data, stage.recipe.picture_size))


def _read(pictures: PictureSource, most: int) -> tuple[np.ndarray, list[int]]:
    """At most so many of the usable pictures, evenly spread, uint8 [N, S, S, 3], and their labels."""
    found, labels = [], []
    for place in np.unique(np.linspace(0, len(pictures) - 1, min(most, len(pictures))).astype(int)).tolist():
        try:
            found.append(pictures.read(place).pixels)
        except DamagedPicture:
            continue
        labels.append(pictures.label(place))
    return (np.stack(found) if found else np.empty((0, 0, 0, 3), np.uint8)), labels
