"""`cascade train plot`: the main curves of one run or several as a picture; TensorBoard shows all of them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path

from cascade.cli.terminal import put

NAME = "plot"
HELP = "Draw the curves of runs: loss, loss on held-out pictures, learning rate, and loss by noise level."


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run; several are compared")
    text = "the picture, a .png (default: curves.png in the run's folder, or here for several)"
    add("--out", type=Path, metavar="FILE", help=text)


def run(args: Namespace) -> None:
    from cascade.files import complete
    from cascade.stages.training.journal import LOG, read_log
    from cascade.training.curves import figure

    out = args.out or (args.runs[0] if len(args.runs) == 1 else Path()) / "curves.png"
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out is {out}, expected the name of a .png file")
    logs = {str(folder): read_log(folder / LOG) for folder in args.runs}
    if empty := [folder for folder, log in logs.items() if not log]:
        raise ValueError(f"{empty[0]} holds no {LOG} with anything in it, expected the folder of a run that has begun")
    if not find_spec("matplotlib"):
        raise RuntimeError("matplotlib is not installed, which draws the curves; pip install 'cascade-diffusion[train]'")
    with complete(out) as file:
        figure(logs).savefig(file, format="png")
    put(out)
