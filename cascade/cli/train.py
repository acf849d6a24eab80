"""`cascade train`: from a recipe to a finished stage."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.cli.errors import Failure
from cascade.cli.progress import Progress, say, silence_libraries

if TYPE_CHECKING:
    from stages.training import Recipe
    from stages.training.loop import Report

NAME = "train"
HELP = "Train one stage from a recipe, or go on with a training that was stopped."
RECIPE = "recipe.yaml"

_EXAMPLES = """
examples:
  cascade train configs/emoji/base64.yaml
  cascade train configs/emoji/base64.yaml optimization.learning_rate=1e-4 phases.0.batch_size=32 --run runs/try
  cascade train configs/emoji/base64.yaml --dry-run

The run's folder keeps the recipe (recipe.yaml), the log (log.jsonl) and checkpoints. The same command goes on where the last
checkpoint stands and ends with the weights of a training that was never stopped.
"""


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
    parser.add_argument("--dry-run", action="store_true", help="check everything, show the whole recipe, and train nothing")


def run(args: Namespace) -> None:
    from cascade.cli.training import check_export, class_names
    from cascade.config import load_recipe, recipe_to_yaml

    silence_libraries()
    recipe = load_recipe(args.config, args.settings)
    folder = args.folder or Path("runs") / recipe.name
    target = args.export or folder / "stage"
    names = class_names(recipe)
    check_export(target)
    summary = _summary(recipe, len(names))
    if args.dry_run:
        print(recipe_to_yaml(recipe) + f"# {summary}\n# run: {folder}, stage: {target}")
        return
    say(summary)
    try:
        _train(recipe, folder, target)
    except KeyboardInterrupt:
        raise Failure(f"stopped; the same command goes on from the last checkpoint in {folder}") from None


def _summary(recipe: Recipe, num_classes: int) -> str:
    """The training in one line; building the network, without memory, checks its settings."""
    from accelerate import init_empty_weights

    from stages.unet import UNet

    with init_empty_weights():
        network = UNet(**recipe.network, num_classes=num_classes)
    size, low_res_size = recipe.network["sample_size"], recipe.network.get("low_res_size")
    sizes = f"{low_res_size} -> {size}" if low_res_size else f"{size}"
    parameters, images = f"{network.num_parameters():,} parameters", f"{recipe.total_images:,} images"
    return f"{recipe.name}: {sizes} px, {num_classes} classes, {parameters}, {images}"


def _train(recipe: Recipe, folder: Path, target: Path) -> None:
    from accelerate import PartialState

    from cascade.cli.training import export, load_pictures
    from stages.training import train

    state = PartialState()
    main = state.is_main_process
    if main:
        _keep_recipe(recipe, folder)
    with Progress("data", quiet=not main) as progress, state.main_process_first():
        pictures = load_pictures(recipe, progress.update)
    with Progress("training", "images", quiet=not main) as progress:

        def report(now: Report) -> None:
            progress.update(now.images_seen, now.total_images, f"{now.size} px, loss {now.loss:.4f}")

        network = train(recipe, pictures, folder, on_report=report, on_message=say if main else lambda message: None)
    if main:
        export(network, recipe, target)
        print(target)


def _keep_recipe(recipe: Recipe, folder: Path) -> None:
    """Lay the recipe into the run's folder; say where it differs from the one that the run was begun with.

    Raises:
        ValueError: if data or network differ, so that the run can't go on.
        Failure: if it can't be written.
    """
    from cascade.config import load_recipe, recipe_to_dict, recipe_to_yaml

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
    if isinstance(values, dict):
        inner = values.items()
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        inner = enumerate(values)  # type: ignore[assignment]
    else:
        return {key: values}
    flat: dict[str, object] = {}
    for name, value in inner:
        flat |= _flat(value, f"{key}.{name}" if key else str(name))
    return flat
