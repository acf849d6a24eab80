"""`cascade sample`: many pictures for measuring, in a run that can be stopped and shared."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cascade.cli.arguments import DEFAULT_MODEL, RUN_OPTIONS, add_run_options, given, positive, seed
from cascade.cli.progress import Bars
from cascade.cli.request import Request
from cascade.cli.terminal import put
from cascade.runs.record import check_folder
from cascade.runs.run import sample_run

NAME = "sample"
HELP = "Make many pictures for measuring; a stopped run goes on, and several processes share it."

EPILOG = """
examples:
  cascade sample emoji --num-images 1000 --out samples/
  torchrun --nproc-per-node 8 -m cascade sample my-imagenet --num-images 50000 --labels random --format npz --out samples/

Picture i has seed S+i. The same command goes on where a run was stopped: nothing is lost, repeated or changed. run.json in the
folder says what the pictures were made from and what one costs in evaluations of the networks and multiply-adds.

On a CPU a new run of 256 pictures and more tries for some seconds which batch size is the fastest here, unless --batch-size says
it; run.json has it then.
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    text = "an installed model, a folder, or a Hub id (default emoji)"
    add("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help=text)
    add("--num-images", type=positive, required=True, metavar="N", help="pictures in all")
    add("--out", type=Path, required=True, metavar="DIR", help="new folder, or that of a run to go on with")
    text = "classes in turn, or drawn from the seed and the picture's number (default balanced)"
    add("--labels", choices=("balanced", "random"), default="balanced", help=text)
    add("--seed", type=seed, default=0, metavar="S", help="of the first picture (default 0)")
    text = "PNG files, tar shards of 1,000 for WebDataset, or one .npz for OpenAI's evaluator (default png)"
    add("--format", choices=("png", "shards", "npz"), default="png", help=text)
    add("--size", type=positive, metavar="PX", help="stop at the stage that makes this size (default: the model's own)")
    add_run_options(parser)


def run(args: Namespace) -> None:
    check_folder(args.out)
    cascade, sampling = Request.of(args, args.size).load()
    with Bars() as bars:
        options = given(args, "num_images", "seed", "labels", "format", *RUN_OPTIONS)
        made = sample_run(cascade, args.out, **options, sampling=sampling, on_progress=bars)
    state = f"{made.plan.num_images:,} pictures of {made.plan.size} px" if made.complete else "the share of this process is done"
    put(f"{args.out}: {state}")
