"""`cascade train`: from a recipe to a finished stage."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.cli import train_ema, train_plot
from cascade.cli.arguments import natural
from cascade.cli.errors import Failure
from cascade.cli.progress import Progress, say, silence_libraries

if TYPE_CHECKING:
    from cascade.stages.training import Recipe
    from cascade.stages.training.examples import PictureSource
    from cascade.stages.training.meter import Report
    from cascade.stages.training.validation import ValidationReport

NAME = "train"
HELP = "Train one stage from a recipe, or go on with a training that was stopped."
RECIPE = "recipe.yaml"
MOST_WORKERS = 8
SUBCOMMANDS = (train_plot, train_ema)
"""`cascade train plot ...`; a recipe of such a name is given as ./plot."""

_EXAMPLES = """
examples:
  cascade train configs/emoji/base64.yaml
  cascade train configs/emoji/base64.yaml optimization.learning_rate=1e-4 phases.0.batch_size=32 --run runs/try
  cascade train configs/emoji/base64.yaml --dry-run

The run's folder keeps the recipe (recipe.yaml), the curves (log.jsonl; tensorboard --logdir shows them too), samples as PNG, and
checkpoints. The same command goes on where the last checkpoint stands and ends with the weights of a training that was never
stopped. Images per second leave out checkpoints, validation and samples; the time left counts them.

when it is trained, or while it is:
""" + "\n".join(f"  cascade train {command.NAME:<6} {command.HELP}" for command in SUBCOMMANDS)


def add_arguments(parser: ArgumentParser) -> None:
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLES
    parser.add_argument("config", type=Path, metavar="CONFIG", help="recipe, a YAML file")
    parser.add_argument(
        "settings", nargs="*", default=[], metavar="KEY=VALUE", help="replaces a value of the recipe; inner keys with dots"
    )
    parser.add_argument(
        "--run", dest="folder", type=Path, metavar="DIR", help="folder of the run (default: runs/ and the recipe's name)"
    )
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="folder of the finished stage (default: stage in the run's folder)"
    )
    parser.add_argument(
        "--track",
        action="append",
        metavar="NAME",
        help="where to show the curves: tensorboard (default, if installed), wandb or another that accelerate knows; repeatable",
    )
    parser.add_argument(
        "--workers",
        type=natural,
        metavar="N",
        help=f"processes that prepare the data (default: 0 for drawings, else the free cores, at most {MOST_WORKERS})",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the whole recipe and what it costs on this machine, and train nothing"
    )


def run(args: Namespace) -> None:
    from cascade.cli.dry_run import described, summary
    from cascade.training.recipes import load_recipe
    from cascade.training.stage import check_export, class_names

    silence_libraries()
    recipe = load_recipe(args.config, args.settings)
    folder = args.folder or Path("runs") / recipe.name
    target = args.export or folder / "stage"
    check_export(target)
    if args.dry_run:
        print(described(recipe, folder, target))
        return
    title = summary(recipe, recipe.num_classes(len(class_names(recipe))))
    try:
        _train(recipe, folder, target, args, title)
    except KeyboardInterrupt as stop:
        how = f"{stop}; " if str(stop) else "stopped; "
        raise Failure(f"{how}the same command goes on from the last checkpoint in {folder}") from None


def _train(recipe: Recipe, folder: Path, target: Path, args: Namespace, title: str) -> None:
    from cascade.data import open_held_out
    from cascade.stages.training import train
    from cascade.stages.training.processes import this_process
    from cascade.training.sample_grids import grid_maker
    from cascade.training.stage import export, load_pictures, picture_size

    state = this_process()
    main = state.is_main_process
    tell = say if main else lambda message: None
    trackers = _trackers(args.track, tell)
    tell(title)
    if main:
        _keep_recipe(recipe, folder)
    with state.main_process_first():
        with Progress("data", quiet=not main) as progress:
            pictures = load_pictures(recipe, progress.update)
        held_out = None
        if recipe.validation is not None:
            with Progress("held-out data", quiet=not main) as progress:
                held_out = open_held_out(recipe.data, recipe.validation.source, picture_size(recipe), progress.update)
    with Progress("training", "images", quiet=not main) as progress:
        watch = _Watch(progress, recipe.total_images)
        network = train(
            recipe,
            pictures,
            folder,
            held_out=held_out,
            on_step=watch.step,
            on_report=watch.report,
            on_validation=watch.validation,
            on_message=progress.say,
            sample_grid=grid_maker(recipe, pictures if held_out is None else held_out, progress.say),
            trackers=trackers,
            workers=_workers(pictures, state.num_processes) if args.workers is None else args.workers,
        )
    if main:
        export(network, recipe, target)
        print(target)


def _trackers(names: list[str] | None, tell: Callable[[str], None]) -> list[str]:
    """Those that were asked for; otherwise TensorBoard, if it is installed.

    Raises:
        ValueError: if one that was asked for can't be used.
    """
    from cascade.stages.training.journal import TENSORBOARD, check_trackers

    if names is None:
        if find_spec(TENSORBOARD):
            return [TENSORBOARD]
        tell("tensorboard is not installed, so the curves are kept in log.jsonl only; `cascade train plot` draws them")
        return []
    check_trackers(names)
    return list(dict.fromkeys(names))


def _workers(pictures: PictureSource, processes: int) -> int:
    """Processes that prepare the data of one training process: none for pictures in memory, else its share of the cores."""
    from cascade.stages.training import PictureSet

    if isinstance(pictures, PictureSet):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // processes - 1))


class _Watch:
    """Shows every step, with what was last measured."""

    def __init__(self, progress: Progress, total_images: int) -> None:
        self.progress, self.total_images = progress, total_images
        self.last: Report | None = None
        self.validated = ""

    def step(self, images_seen: int) -> None:
        if images_seen < self.total_images:  # else a report follows, with the last figures
            self._show(images_seen)

    def _show(self, images_seen: int) -> None:
        note = "" if self.last is None else f"{self.last.size} px, loss {self.last.loss:.4f}{self.validated}"
        rate = None if self.last is None else self.last.images_per_second
        self.progress.update(images_seen, self.total_images, note, rate)

    def report(self, now: Report) -> None:
        self.last = now
        self._show(now.images_seen)

    def validation(self, now: ValidationReport) -> None:
        self.validated = f", held-out {now.loss:.4f}" + (f" ({now.psnr:.2f} dB)" if now.psnr is not None else "")


def _keep_recipe(recipe: Recipe, folder: Path) -> None:
    """Lay the recipe into the run's folder; say where it differs from the one that the run was begun with.

    Raises:
        ValueError: if data or network differ, so that the run can't go on.
        Failure: if it can't be written.
    """
    from cascade.training.recipes import load_recipe, recipe_to_dict, recipe_to_yaml

    path = folder / RECIPE
    try:
        if path.is_file():
            before, now = _flat(recipe_to_dict(load_recipe(path))), _flat(recipe_to_dict(recipe))
            for key in sorted(before.keys() | now.keys()):
                if key in before and key in now and before[key] != now[key] and key.partition(".")[0] in ("data", "network"):
                    raise ValueError(
                        f"{folder} holds a run with {key} {before[key]}, not {now[key]}; use another --run or remove it"
                    )
                if before.get(key) != now.get(key):
                    say(f"{path} is changed: {key} was {before.get(key)}, is now {now.get(key)}")
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{RECIPE}.{os.getpid()}")
        partial.write_text(recipe_to_yaml(recipe), "utf-8")
        partial.replace(path)
    except OSError as error:
        raise Failure(f"the run's folder {folder} can't be written: {error.strerror or error}; choose another --run") from error


def _flat(values: object, key: str = "") -> dict[str, object]:
    """Nested values by their dotted keys."""
    inner: Iterable[tuple[object, object]]
    if isinstance(values, dict):
        inner = values.items()
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        inner = enumerate(values)
    else:
        return {key: values}
    flat: dict[str, object] = {}
    for name, value in inner:
        flat |= _flat(value, f"{key}.{name}" if key else str(name))
    return flat
