"""One stage trained from its recipe: what happens around the training loop, and what a run keeps beside its checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from accelerate.utils import broadcast_object_list

from cascade.data import open_held_out, open_pictures
from cascade.data.checking import cores
from cascade.files import read_text, write_text
from cascade.folder import STAGE
from cascade.progress import OnProgress
from cascade.stages.training import PictureSet, Recipe, checkpoint, train
from cascade.stages.training.journal import LOG, TENSORBOARD, check_trackers, read_log
from cascade.stages.training.meter import Report
from cascade.stages.training.post_hoc import Snapshots
from cascade.stages.training.processes import this_process
from cascade.stages.training.time_box import TimeBox, fitted
from cascade.stages.training.validation import ValidationReport
from cascade.stages.unet import UNet
from cascade.training.export import check_export, export_stage
from cascade.training.recipes import load_recipe, recipe_to_dict, recipe_to_yaml
from cascade.training.sample_grids import CONTACT_SHEET, grid_maker, with_contact_sheet

RECIPE = "recipe.yaml"
CLASSES = "classes.json"
"""Files in a run's folder: what is trained, and the names of its classes."""

MOST_WORKERS = 8
_NOTHING = "nothing"


def _nothing(*_: Any) -> None:
    """Told of anything, does nothing."""


@dataclass(frozen=True, slots=True)
class TrainedStage:
    """What a training run has ended in.

    folder: Of the stage, which `BasePipeline.from_pretrained`, or that of its class, loads.
    run: The run's folder.
    sheet: The run's contact sheet of samples; None if it made none.
    images_seen: Training images.
    loss, validation_loss: The last on training, weighted as there, and on held-out pictures; None where none was measured.
    class_names: Of its classes, in the order of their indices; None where it has none, or its data doesn't name them.
    """

    folder: Path
    run: Path
    sheet: Path | None
    images_seen: int
    loss: float | None
    validation_loss: float | None
    class_names: tuple[str, ...] | None


def train_stage(
    recipe: Recipe | str | Path,
    run: str | Path | None = None,
    export: str | Path | None = None,
    *,
    trackers: Sequence[str] | None = None,
    workers: int | None = None,
    seconds: float | None = None,
    refit: bool = False,
    on_progress: OnProgress = _nothing,
    on_report: Callable[[Report], None] = _nothing,
    on_validation: Callable[[ValidationReport], None] = _nothing,
    on_message: Callable[[str], None] = _nothing,
) -> TrainedStage:
    """Train one stage, or go on with a run that was stopped, and write the finished stage; as `cascade train`.

    The result is the same however often the run was stopped. With several processes, which torchrun or accelerate start, all of
    them call this; the main one writes, and calls back.

    Args:
        recipe: What is trained: a recipe, or what `load_recipe` takes.
        run: The run's folder: recipe, class names, log, samples, a contact sheet of them, and checkpoints; None = `runs/` and the
            recipe's name.
        export: Folder of the finished stage; None = `stage` in the run's.
        trackers: Where the curves are shown beside the log, by accelerate's names; None = TensorBoard, if it is installed.
        workers: Processes that prepare the data; None = 0 for drawings, else this process's free cores, at most `MOST_WORKERS`.
        seconds: Time for everything, from this call on: the recipe's lengths are fitted to it, again and again by the speed that
            was measured, and the run's recipe.yaml is what was trained in the end. A run that was stopped goes on by the recipe
            that it was fitted to last, unless `refit` says otherwise. None = the lengths of the recipe.
        refit: Whether a run that was stopped is fitted anew, so that its rest takes `seconds`, whatever length it had; and one
            that is begun takes a few steps at least.
        on_progress: Called while data is listed or drawn, and after every step.
        on_report: Called with a `Report` every few steps: losses, rate, speed and memory since the report before.
        on_validation: Called with a `ValidationReport`: the loss on held-out pictures.
        on_message: Called with a sentence on anything worth a remark.

    Raises:
        ValueError: if recipe, data, run folder or trackers don't go together, or too many pictures are damaged.
        FloatingPointError: if several steps in a row have no finite gradient.
        OSError: if something can't be written; the last checkpoint is whole then.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the step is finished and a checkpoint is written; its text says so.
    """
    begun, time_box = time.monotonic(), None
    given = recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    run = run_folder(recipe) if run is None else Path(run)
    folder = run / STAGE if export is None else Path(export)
    check_export(folder)
    summary(recipe, recipe.num_classes(recipe.data.classes or 1))  # a network that can't be built is told before data is read
    process = this_process()
    if not process.is_main_process:
        on_progress = on_report = on_validation = on_message = _nothing
    trackers = _default_trackers(on_message) if trackers is None else list(dict.fromkeys(trackers))
    check_trackers(trackers)
    data, checks = recipe.data, recipe.validation
    with process.main_process_first():
        pictures = open_pictures(data, recipe.picture_size, partial(on_progress, "data"))
        held_out = None if checks is None else open_held_out(data, checks.source, pictures, partial(on_progress, "held-out data"))
    found = pictures.class_names
    num_classes = recipe.num_classes(len(found))
    numbers = tuple(map(str, range(len(found))))  # they stand for names that the data doesn't give
    class_names = None if num_classes is None or found == numbers else found
    if workers is None:
        workers = 0 if isinstance(pictures, PictureSet) else max(1, min(MOST_WORKERS, cores() // process.num_processes - 1))
    said = on_message
    seen = _images_seen(run) if seconds is not None and refit else 0
    if seconds is not None and not seen and (kept := _fitted_before(run, recipe)):
        recipe = kept
        on_message(f"goes on by {run / RECIPE}, which was fitted to a time before")
    elif seconds is not None:
        time_box = _time_box(recipe, num_classes, begun + seconds, seen, not refit)
        recipe = fitted(recipe, time_box.factor)
        said = _nothing if seen else on_message  # that its lengths are others is what was asked for
    on_message(summary(recipe, num_classes))

    planned, shown = recipe, pictures if held_out is None else held_out

    def as_it_stands() -> Recipe:
        return planned if time_box is None else fitted(given, time_box.factor)

    network = train(
        recipe,
        pictures,
        run,
        held_out=held_out,
        on_step=lambda images_seen: on_progress("training", images_seen, as_it_stands().total_images),
        on_report=on_report,
        on_validation=on_validation,
        on_message=on_message,
        sample_grid=with_contact_sheet(grid_maker(recipe, shown, on_message), recipe, run),
        trackers=trackers,
        workers=workers,
        time_box=time_box,
        on_recipe=lambda now: write_text(run / RECIPE, recipe_to_yaml(now)) if process.is_main_process else None,
        on_held=lambda: _keep(run, planned, class_names, said),
    )
    recipe = as_it_stands()
    if process.is_main_process:
        export_stage(network, recipe, folder, class_names)
    last = {name: value for record in read_log(run / LOG) for name, value in record.items() if value is not None}
    sheet = run / CONTACT_SHEET if (run / CONTACT_SHEET).is_file() else None
    return TrainedStage(folder, run, sheet, recipe.total_images, last.get("loss"), last.get("validation_loss"), class_names)


def _images_seen(run: Path) -> int:
    """Images that the newest checkpoint of a run has seen; 0 where it has none."""
    newest = next(iter(checkpoint.folders(run)), None)
    return 0 if newest is None else int(newest.name.removeprefix(checkpoint.PREFIX))


def _time_box(recipe: Recipe, num_classes: int | None, end: float, seen: int, strict: bool) -> TimeBox:
    """The recipe's lengths in the time from now to `end`, as the main process finds them."""
    from cascade.training.forecast import seconds_per_image

    rates = [seconds_per_image(recipe, num_classes, phase) for phase in recipe.phases]
    time_box = TimeBox(recipe, end, rates, seen=seen, strict=strict)
    (time_box.factor,) = broadcast_object_list([time_box.factor])
    return time_box


def _fitted_before(run: Path, recipe: Recipe) -> Recipe | None:
    """The recipe that a run keeps, if it is this one but for its lengths."""
    kept = _kept_recipe(run)
    return kept if kept is not None and fitted(kept, 0) == fitted(recipe, 0) else None


@dataclass(frozen=True, slots=True)
class AveragedStage:
    """A stage with an average of another length, its folder, and the training images at which that ends.

    snapshots: How many it is made from.
    distance: Of its profile from that of the average as tracked in training, relative, see `post_hoc.mixture`.
    """

    folder: Path
    images: int
    snapshots: int
    distance: float


def average_stage(run: str | Path, std: float, images: int | None = None, export: str | Path | None = None) -> AveragedStage:
    """Make a stage from a run's snapshots, with weights averaged over any length; as `cascade train ema`.

    Args:
        run: Folder of a run, finished or not, whose recipe has `snapshots`.
        std: Length: the average's relative width, see `ema.gamma_of`.
        images: Training images at which the average ends; None = the last snapshot.
        export: Folder of the stage; None = `ema-STD` in the run's.

    Raises:
        ValueError: if it is not such a run, or there is no such average.
        OSError: if the stage can't be written.
    """
    run = Path(run)
    if not (run / RECIPE).is_file():
        raise ValueError(f"{run} holds no {RECIPE}, expected the folder of a run")
    recipe, snapshots = load_recipe(run / RECIPE), Snapshots.find(run, images)
    folder = run / f"ema-{std:g}" if export is None else Path(export)
    check_export(folder)
    weights, distance = snapshots.average(std)
    network = UNet(**snapshots.network)
    network.load_state_dict(weights)
    export_stage(network.eval(), recipe, folder, _kept_classes(run))
    return AveragedStage(folder, snapshots.images, len({profile.images for profile in snapshots.profiles.values()}), distance)


def run_folder(recipe: Recipe) -> Path:
    """Where a recipe is trained unless it is said otherwise."""
    return Path("runs") / recipe.name


def summary(recipe: Recipe, num_classes: int | None) -> str:
    """The training run in one line. Raises ValueError unless its settings describe a network, which is built without memory."""
    with init_empty_weights():
        network = UNet(**recipe.network, num_classes=num_classes)
    size, low_res_size = recipe.network["sample_size"], recipe.network.get("low_res_size")
    sizes = f"{low_res_size} -> {size} px" if low_res_size else f"{size} px"
    classes = "no classes" if num_classes is None else f"{num_classes} classes"
    return f"{recipe.name}: {sizes}, {classes}, {network.num_parameters():,} parameters, {recipe.total_images:,} images"


def _default_trackers(on_message: Callable[[str], None]) -> list[str]:
    if find_spec(TENSORBOARD):
        return [TENSORBOARD]
    on_message("tensorboard is not installed, so the curves are kept in log.jsonl only; `cascade train plot` draws them")
    return []


def _kept_recipe(run: Path, on_message: Callable[[str], None] = _nothing) -> Recipe | None:
    """The recipe that a run keeps; None where it has none, or a damaged one, which is said."""
    try:
        return load_recipe(run / RECIPE) if (run / RECIPE).exists() else None
    except ValueError as error:
        on_message(f"{run / RECIPE} can't be read, and is written anew ({error})")
        return None


def _kept_classes(run: Path) -> tuple[str, ...] | None:
    """The class names that a run keeps; None where it has none. Raises ValueError if they are damaged."""
    path = run / CLASSES
    if not path.is_file():
        return None
    with suppress(ValueError):
        names = json.loads(read_text(path))
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    raise ValueError(f"{path} is damaged, expected a list of names; remove it: the same training writes it anew")


def _keep(run: Path, recipe: Recipe, class_names: Sequence[str] | None, on_message: Callable[[str], None]) -> None:
    """Lay recipe and class names into the run's folder; say where the recipe differs from the one that the run was begun with.

    Raises ValueError if data, network or classes differ, so that the run can't go on; OSError if it can't be written.
    """
    path, before = run / RECIPE, _kept_recipe(run, on_message)
    try:
        kept = _kept_classes(run)
    except ValueError as error:
        kept = None
        on_message(f"{run / CLASSES} can't be read, and is written anew ({error})")
    if kept and class_names and (others := sorted({*kept} ^ {*class_names})):
        raise ValueError(f"{run} holds a run of other classes ({', '.join(others[:4])}); use another folder or remove this one")
    for key, old, new in () if before is None else _changes(recipe_to_dict(before), recipe_to_dict(recipe)):
        if _NOTHING not in (old, new) and key.partition(".")[0] in ("data", "network"):
            raise ValueError(f"{run} holds a run with {key} {old}, not {new}; use another folder or remove this one")
        on_message(f"{path} is changed: {key} was {old}, is now {new}")
    try:
        write_text(path, recipe_to_yaml(recipe))
        if class_names is not None:
            write_text(run / CLASSES, json.dumps(class_names, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise OSError(f"the run's folder {run} can't be written: {error.strerror or error}; choose another one") from error


def _changes(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two nested values differ, by dotted keys, and what is there in both."""
    if all(isinstance(values, list) and values and isinstance(values[0], dict) for values in (before, now)):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before | now:
            yield from _changes(before.get(name, _NOTHING), now.get(name, _NOTHING), f"{key}.{name}" if key else str(name))
    elif before != now:
        yield key, before, now
