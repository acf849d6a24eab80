"""Writes recipe-reference.md: every key of a recipe with its type, its default and what it means, from the code itself.

    python docs/recipe_reference.py

A test fails while the page is not what this makes.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from cascade.stages.base import BasePipeline
from cascade.stages.noise import LAWS
from cascade.stages.sr3 import SR3Pipeline
from cascade.stages.training import Objective, Recipe
from cascade.stages.training.recipe import Augmentation, Data, Optimization, Phase, Samples, Snapshots, Validation
from cascade.stages.unet import UNet
from cascade.training.recipes import FIXED_BY_DATA, FIXED_BY_TRAINING

PAGE = Path(__file__).with_name("recipe-reference.md")

SECTIONS = (
    ("data", Data), ("network", UNet), ("phases", Phase), ("objective", Objective), ("augmentation", Augmentation),
    ("optimization", Optimization), ("samples", Samples), ("snapshots", Snapshots), ("validation", Validation),
)  # fmt: skip

HEAD = """# Every key of a recipe

Made from the code by `python docs/recipe_reference.py`. What recipes are for is told in [training](training.md), which pictures
they take in [data](data.md). On the command line a key is set as `optimization.learning_rate=1e-4`, in a list by its place, as
`phases.0.images=1000`. A key without a default must be given. `cascade train RECIPE --dry-run` prints a recipe with all of them.
"""


def page() -> str:
    """The page, Markdown."""
    parts = [HEAD, "## At the top\n", _table("", _fields(Recipe), _told(Recipe))]
    for name, kind in SECTIONS:
        place = f"{name}.0" if name == "phases" else name
        parts += [f"## `{name}`\n", _summary(kind), _table(place, _fields(kind), _told(kind))]
        if kind is Objective:
            parts.append("`objective.law` is a mapping with the `kind` of the law beside its keys:\n")
            for word, law in LAWS.items():
                parts += [f"### `kind: {word}`\n", _plain(inspect.getdoc(law) or "") + "\n"]
                parts.append(_table("objective.law", _fields(law), {}))
    both = {**_fields(BasePipeline), **_fields(SR3Pipeline)}
    told = _told(BasePipeline) | _told(SR3Pipeline) | {"num_inference_steps": "Steps of the scheduler."}
    told["scheduler"] = "Short name of the scheduler that the stage is saved with, see [Python](python.md) and `generate --help`."
    parts += ["## `sampling`\n", "Default settings of the finished stage; the last three are a refining stage's.\n"]
    parts.append(_table("sampling", {"scheduler": ("text", '"dpm++"')} | both, told))
    return "\n".join(parts)


def _fields(kind: Any) -> dict[str, tuple[str, str]]:
    """Type and default of each key that a class takes in a recipe, as words."""
    without = ("self", *FIXED_BY_DATA, *FIXED_BY_TRAINING)
    found = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name not in without:
            found[name] = _type(str(parameter.annotation)), _default(parameter.default)
    return found


def _type(annotation: str) -> str:
    words = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "dict[str, Any]": "mapping"}
    optional = annotation.removesuffix(" | None")
    several = re.fullmatch(r"(?:tuple|Sequence)\[(\w+)(?:, \.\.\.)?\]", optional)
    word = words.get(optional, "mapping")
    if several:
        word = f"list of {words[several[1]]}s" if several[1] in words else "list"
    return word + (" or null" if annotation != optional else "")


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(str, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value}" if isinstance(value, (int, float)) else "its own"


def _told(kind: Any) -> dict[str, str]:
    """What the docstring of a class says of each of its keys: "name: text", or "one, two: text"."""
    found: dict[str, str] = {}
    names: list[str] = []
    text = inspect.getdoc(kind) or ""
    known = set(inspect.signature(kind.__init__).parameters)
    for line in text.splitlines():
        match = re.match(r"\s*((?:\w+(?:, )?)+): (.*)", line)
        if match and set(match[1].split(", ")) <= known:
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif not line.strip() or not line.startswith(" "):
            names = []
        elif names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _summary(kind: Any) -> str:
    return _plain((inspect.getdoc(kind) or "").split("\n\n")[0]) + "\n"


def _table(place: str, fields: dict[str, tuple[str, str]], told: dict[str, str]) -> str:
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, (kind, default) in fields.items():
        key = f"{place}.{name}" if place else name
        shown = f"`{default}`" if default and default != "its own" else default
        lines.append(f"| `{key}` | {kind} | {shown} | {_plain(told.get(name, ''))} |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A docstring as Markdown: one line for each paragraph, nothing in it ends a cell of a table."""
    text = "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).replace("None", "null")
    parts = re.split(r"(`[^`]*`)", text)  # code stands as it is
    return "".join(part if part.startswith("`") else re.sub(r"([|*<>])", r"\\\1", part) for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
