"""`cascade data`: lay the drawings out as an image folder, and check the pictures of a data set."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cascade.cli.arguments import positive
from cascade.cli.errors import Failure
from cascade.cli.progress import Progress

NAME = "data"
HELP = "Check the pictures of a data set, or write the drawings as a folder of class folders of PNG files."


def add_arguments(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    for name, text, options, action in (
        ("check", "Read every picture once by the rules of training, and count and name the odd ones.", _check_options, _check),
        ("emoji", "Write the drawings that come with the package, 75 classes, as PNG files.", _emoji_options, _emoji),
    ):
        command = commands.add_parser(name, help=text, description=text)
        options(command)
        command.set_defaults(action=action)


def run(args: Namespace) -> None:
    args.action(args)


def _emoji_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="new folder; an interrupted run goes on in its own"
    )
    parser.add_argument("--size", type=positive, default=256, metavar="N", help="side of the pictures in pixels (default 256)")
    parser.add_argument("--split", choices=("train", "heldout"), help="only this part (default: both)")


def _check_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="a folder of class folders, shards as 'set/train-*.tar', or what else data.source takes"
    )
    parser.add_argument("--size", type=positive, default=256, metavar="N", help="size that training needs (default 256)")
    parser.add_argument("--label", metavar="COLUMN", help="of the class in parquet shards, where several can be it")
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="processes that read (default: one for each core that is free to use)"
    )


def _emoji(args: Namespace) -> None:
    from cascade.data.drawings import write_image_folder

    with Progress("drawings") as progress:
        count = write_image_folder(args.out, args.size, args.split, progress.update)
    print(f"{args.out}: {count} pictures of {args.size}x{args.size}, with their NOTICE")


def _check(args: Namespace) -> None:
    from cascade.data import listing
    from cascade.data.checking import check, cores, uncropped
    from cascade.data.folder import Photos
    from cascade.stages.training import Data

    with Progress("listing", "shards") as progress:
        found = listing(Data(source=args.source, label=args.label), progress.update)
    with Progress("checking") as progress:
        log = check(Photos(found, args.size, uncropped), args.workers or cores(), progress.update)
    skipped = log.skipped()
    if table := log.table():
        print(table)
    total, classes = len(found.labels), len(found.class_names)
    print(f"{total:,} pictures, {classes:,} classes: {total - skipped:,} usable at {args.size} px, {skipped:,} skipped")
    if skipped == total:
        raise Failure(f"no picture of {args.source} can be used at {args.size} px")
