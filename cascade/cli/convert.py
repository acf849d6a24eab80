"""`cascade convert`: a published checkpoint becomes a stage."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from cascade.cli.terminal import put, say
from cascade.stages.files import read_text
from cascade.stages.saved import read_json

NAME = "convert"
HELP = "Turn a published checkpoint (ADM, consistency models, EDM, EDM2, JiT, pMF, unofficial SR3 ...) into a stage."

EPILOG = """
families:
  guided-diffusion, guided-diffusion-sr, improved-diffusion, improved-diffusion-sr, consistency, edm, edm2, sr3, sr3-ddpm,
  jit, pmf

examples:
  cascade convert guided-diffusion-sr 64_256_upsampler.pt --out upsampler/
  cascade convert pmf pMF-B-16.pt --out pmf-b-256/
  cascade convert sr3 mine_gen.pth --config mine.json --out sr3/

Nothing in the file is executed: .pt and .pth are read as tensors only, the pickles of EDM by a reader that refuses all else.
"""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("family", metavar="FAMILY", help="which project's network it is, see below")
    add("weights", type=Path, metavar="FILE", help=".pt, .pth, .safetensors, or .pkl of EDM and EDM2")
    add("--out", type=Path, required=True, metavar="DIR", help="new folder of the stage")
    add(
        "--config", type=Path, metavar="JSON", help="the family's own options; not needed for a published file under its own name"
    )


def run(args: Namespace) -> None:
    config = None if args.config is None else _read(args.config)

    from cascade.stages.published import convert

    folder = convert(args.family, args.weights, config, args.out)
    if average := read_json(folder / "unet" / "config.json")["published"].get("average"):
        say(f"took the weights {average!r} of {args.weights.name}")
    put(folder)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path))
    except FileNotFoundError:
        raise ValueError(f"there is no config {path}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"config {path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"config {path} holds a {type(values).__name__}, expected the family's options by name")
    return values
