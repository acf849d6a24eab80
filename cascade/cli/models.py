"""`cascade models`: what `--model` can be on this machine."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from cascade.catalogue import Entry, catalogue
from cascade.cli.terminal import put
from cascade.presets import Preset

NAME = "models"
HELP = "List the models that have a name: shipped, installed, and presets with the commands that fetch what they lack."


def add_arguments(parser: ArgumentParser) -> None:
    """It has none."""


def run(args: Namespace) -> None:
    put(*(line for entry in catalogue() for line in _described(entry)))


def _described(entry: Entry) -> list[str]:
    """A model in a line, and a line for every file that it lacks."""
    if not entry.sizes:
        return [f"{entry.name} ({entry.kind})"]
    size = "size not stated" if entry.megabytes is None else f"{entry.megabytes:,.0f} MB"
    classes = "" if entry.classes is None else f", {entry.classes} classes"
    licences = "; ".join(entry.licences) or "licence not stated"
    sides = " -> ".join(map(str, entry.sizes))
    first = f"{entry.name} ({entry.kind}): {sides} px{classes}, {size}, {licences}"
    lines = [first] if entry.preset is None else [first, f"  {_per_picture(entry.preset)}"]
    if entry.preset is not None:
        lines.append(f"  lacks {len(entry.missing)} of its files:" if entry.missing else "  ready")
    return lines + [f"    {file.how_to_get}" for file in entry.missing]


def _per_picture(preset: Preset) -> str:
    cost = "" if preset.tmac_per_image is None else f", {preset.tmac_per_image:g} TMAC"
    quality = "not measured" if preset.fid_published is None else f"{preset.fid_published:g} by its authors"
    return f"{preset.nfe} evaluation{'s' * (preset.nfe != 1)}{cost} per picture, FID {quality}"
