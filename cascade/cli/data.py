"""`cascade data`: lay a data set out as an image folder."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cascade.cli.arguments import positive
from cascade.cli.progress import Progress

NAME = "data"
HELP = "Write a data set as a folder of class folders of PNG files."


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", choices=("emoji",), help="emoji: the drawings that come with the package, 75 classes")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="new folder; an interrupted run goes on in its own"
    )
    parser.add_argument("--size", type=positive, default=256, metavar="N", help="side of the pictures in pixels (default 256)")
    parser.add_argument("--split", choices=("train", "heldout"), help="only this part (default: both)")


def run(args: Namespace) -> None:
    from cascade.drawings import write_image_folder

    with Progress("drawings") as progress:
        count = write_image_folder(args.out, args.size, args.split, progress.update)
    print(f"{args.out}: {count} pictures of {args.size}x{args.size}, with their NOTICE")
