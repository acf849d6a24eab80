"""`cascade train ema`: a finished stage with an average of another length, made from a run's snapshots."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cascade.cli.arguments import positive
from cascade.cli.progress import say, silence_libraries

NAME = "ema"
HELP = "Make a stage from a run's snapshots, with weights averaged over any length."


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "The run's recipe has to have a section `snapshots`. A longer average (up to 0.2887, the mean of everything) is smoother,"
        " a shorter one follows the last weights; which one makes the best images is found by measuring a few."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, finished or not")
    parser.add_argument(
        "--std", type=float, required=True, metavar="S", help="length: the average's relative width, such as 0.05, 0.075 or 0.10"
    )
    parser.add_argument(
        "--images", type=positive, metavar="N", help="training images at which the average ends (default: the last snapshot)"
    )
    parser.add_argument("--export", type=Path, metavar="DIR", help="folder of the stage (default: ema-S in the run's folder)")


def run(args: Namespace) -> None:
    from cascade.cli.train import RECIPE
    from cascade.stages.training.post_hoc import Snapshots
    from cascade.stages.unet import UNet
    from cascade.training.recipes import load_recipe
    from cascade.training.stage import check_export, export

    silence_libraries()
    if not (args.run / RECIPE).is_file():
        raise ValueError(f"{args.run} holds no {RECIPE}, expected the folder of a run")
    recipe = load_recipe(args.run / RECIPE)
    snapshots = Snapshots.find(args.run, args.images)
    target = args.export or args.run / f"ema-{args.std:g}"
    check_export(target)
    weights, distance = snapshots.average(args.std)
    network = UNet(**snapshots.network)
    network.load_state_dict(weights)
    export(network.eval(), recipe, target)
    count = len({profile.images for profile in snapshots.profiles.values()})
    say(
        f"width {args.std:g} of {snapshots.images:,} images, from {count} snapshots;"
        f" its profile is {100 * distance:.2g} % off the one that is tracked in training"
    )
    print(target)
