"""`cascade data`: lay the drawings out as an image folder, and check the pictures of a data set."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.cli.arguments import add_commands, positive
from cascade.cli.progress import Progress
from cascade.cli.terminal import put
from cascade.eval.text import printable

if TYPE_CHECKING:
    from cascade.stages.training.examples import PictureSource

NAME = "data"
HELP = "Check the pictures of a data set, or write the drawings as a folder of class folders of PNG files."


def add_arguments(parser: ArgumentParser) -> None:
    checks = "Read every picture once by the rules of training, and count and name the odd ones."
    writes = "Write the drawings that come with the package, 75 classes, as PNG files."
    add_commands(parser, ("check", checks, _check_options, _check), ("emoji", writes, _emoji_options, _emoji))


def run(args: Namespace) -> None:
    args.action(args)


def _emoji_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="new folder; an interrupted run goes on in its own")
    add("--size", type=positive, default=256, metavar="N", help="side of the pictures in pixels (default 256)")
    add("--split", choices=("train", "heldout"), help="only this part (default: both)")


def _check_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a folder of class folders, shards as 'set/train-*.tar', or any other data.source")
    add("--size", type=positive, default=256, metavar="N", help="size that training needs (default 256)")
    add("--label", metavar="COLUMN", help="of the class in parquet shards, where several can be it")
    add("--workers", type=positive, metavar="N", help="processes that read (default: one for each core that is free to use)")


def _emoji(args: Namespace) -> None:
    from cascade.data.drawings import write_image_folder

    with Progress("drawings") as progress:
        count = write_image_folder(args.out, args.size, args.split, progress.update)
    put(f"{args.out}: {count} pictures of {args.size}x{args.size}, with their NOTICE")


def _check(args: Namespace) -> None:
    from cascade.data import held_out_source, open_pictures, source_folder
    from cascade.data.checking import check, cores
    from cascade.stages.training import Data

    with Progress("data") as progress:
        pictures = open_pictures(Data(source=args.source, label=args.label), args.size, progress.update)
    with Progress("checking") as progress:
        log = check(pictures, args.workers or cores(), progress.update)
    folder = source_folder(args.source)
    if folder is not None and folder != Path(args.source).expanduser():
        held_out = held_out_source(args.source)
        put(f"{folder}, the part of {args.source} to train on" + f"; {held_out} is held out" * (held_out is not None))
    if table := log.table():
        put(*table.split("\n"))
    total, skipped, classes = len(pictures), log.skipped(), len(pictures.class_names)
    put(*_classes(pictures))
    put(f"{total:,} pictures, {classes:,} classes: {total - skipped:,} usable at {args.size} px, {skipped:,} skipped")
    if skipped == total:
        raise RuntimeError(f"no picture of {args.source} can be used at {args.size} px")


def _classes(pictures: PictureSource) -> list[str]:
    """The classes and how many pictures each has, a line for each."""
    counts = Counter(pictures.label(i) for i in range(len(pictures)))
    rows = [("class", "pictures"), *((printable(name), f"{counts[i]:,}") for i, name in enumerate(pictures.class_names))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [f"{name:<{widths[0]}}  {count:>{widths[1]}}" for name, count in rows]
