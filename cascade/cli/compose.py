"""`cascade compose`: stages become a model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cascade.cli.arguments import positive
from cascade.cli.terminal import put

NAME = "compose"
HELP = "Make a model of a base and the stages that refine its pictures."

EPILOG = """
examples:
  cascade compose runs/base64 runs/sr256 --out mine/
  generate --model mine/ --class cat

The classes are called as in the pictures that the stages were trained on.
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("stages", nargs="+", metavar="STAGE", help="folders of stages or of training runs, the base first")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the model; a model in it is replaced")
    add("--name", metavar="TEXT", help="name of the model (default: that of its folder)")
    add("--default-size", type=positive, metavar="PX", help="side of the pictures where none is asked for (default: the largest)")


def run(args: Namespace) -> None:
    from cascade.cli.progress import silence_libraries
    from cascade.composed import compose

    silence_libraries()
    cascade = compose(*args.stages, name=args.name or args.out.absolute().name, default_size=args.default_size)
    cascade.save_pretrained(args.out)
    put(args.out)
