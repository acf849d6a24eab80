"""`cascade classes`: what a model can make."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from cascade.classes import Vocabulary, imagenet
from cascade.cli.arguments import DEFAULT_MODEL
from cascade.cli.terminal import put
from cascade.folder import Manifest
from cascade.models import resolve

NAME = "classes"
HELP = "List the classes that a model knows: index, WordNet id where there is one, name and synonyms."


def add_arguments(parser: ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="M", help="a shipped or installed model, a folder or a Hub id (default emoji)"
    )
    which.add_argument("--imagenet", action="store_true", help="the 1000 classes of ImageNet instead")
    parser.add_argument("--search", metavar="WORD", help="only those with this word in a name, synonym or id")


def run(args: Namespace) -> None:
    classes = imagenet() if args.imagenet else _classes_of(args.model)
    lines = [classes.describe(index) for index in range(len(classes))]
    if args.search is not None:
        lines = [line for line in lines if args.search.casefold() in line.casefold()]
        if not lines:
            raise ValueError(f"no class of {len(classes)} has {args.search!r} in its name; leave out --search to see them all")
    put(*lines)


def _classes_of(model: str) -> Vocabulary:
    manifest = Manifest.read(resolve(model))
    if manifest.classes is None:
        raise ValueError(f"the classes of {manifest.name!r} have no names")
    return manifest.classes
