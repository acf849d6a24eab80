"""`cascade train ema`: a finished stage with an average of another length, made from a run's snapshots."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cascade.cli.arguments import positive
from cascade.cli.progress import silence_libraries
from cascade.cli.terminal import put, say

NAME = "ema"
HELP = "Make a stage from a run's snapshots, with weights averaged over any length."


def add_arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "The run's recipe has to have a section `snapshots`. A longer average (up to 0.2887, the mean of everything) is smoother,"
        " a shorter one follows the last weights; which one makes the best images is found by measuring a few."
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run, finished or not")
    add("--std", type=float, required=True, metavar="S", help="length: the average's relative width, such as 0.05, 0.075 or 0.10")
    add("--images", type=positive, metavar="N", help="training images at which the average ends (default: the last snapshot)")
    add("--export", type=Path, metavar="DIR", help="folder of the stage (default: ema-S in the run's folder)")


def run(args: Namespace) -> None:
    from cascade.training.stage import average_stage

    silence_libraries()
    made = average_stage(args.run, args.std, args.images, args.export)
    say(
        f"width {args.std:g} of {made.images:,} images, from {made.snapshots} snapshots;"
        f" its profile is {100 * made.distance:.2g} % off the one that is tracked in training"
    )
    put(made.folder)
