"""The card of a model that a fit made: what it saw, how it was trained, what was measured, and what to expect of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.eval.text import printable
from cascade.pipeline import CascadePipeline
from cascade.stages.training import Recipe
from cascade.training.fit_plan import FitPlan

if TYPE_CHECKING:
    from cascade.training.fit_result import FitFigures

MOST_CLASSES, MOST_POINTS = 50, 8
"""Classes that a card lists, and points of a curve in its table."""

Log = Sequence[Mapping[str, Any]]


def card_of(
    cascade: CascadePipeline,
    name: str,
    plan: FitPlan,
    record: Mapping[str, Any],
    recipes: Mapping[str, Recipe],
    figures: FitFigures,
    logs: Mapping[str, Log],
    rows: Sequence[str],
    seconds: float,
    curves: str | None,
) -> str:
    """The card, Markdown. `rows` are the classes of the sheet's rows, `curves` the file of a picture of them, if there is one."""
    sizes = " to ".join(f"{size}x{size}" for size in cascade.sizes.values())
    shown = "Samples with seeds 0 to 3" + (f"; a row each: {', '.join(map(quoted, rows))}." if rows else ".")
    ask = f" --class {_shell(plan.look.class_names[0])}" if plan.look.labelled else ""
    parts = [
        "---\nlibrary_name: cascade-diffusion\npipeline_tag: unconditional-image-generation\n"
        "tags: [diffusion, cascade, sr3]\n---\n",
        f"# {quoted(name)}\n",
        f"A cascade of diffusion models for {sizes} pictures, made by `cascade fit` from {plan.look.total:,} pictures in"
        f" {_amount(seconds)} on {_device(plan)}.\n",
        "![Samples](samples.png)\n",
        shown + "\n",
        f"```sh\ngenerate --model {_shell(name)}{ask}\n```\n",
        "## What it saw\n",
        _seen(plan),
        "## How it was trained\n",
        _trained(cascade, plan, record, recipes),
        *([f"![Curves]({curves})\n"] if curves else []),
        _curve_table(logs),
        "## What was measured\n",
        _measured(figures),
        "## What to expect\n",
        _expected(plan, record),
    ]
    return "\n".join(parts)


def quoted(text: str) -> str:
    """A name from the disk as Markdown shows it: nothing in it is markup, or acts on a terminal."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&$]|(?<!\w)-)", r"\\\1", printable(text))


def _shell(name: str) -> str:
    """A name as a command line in a card has it; one that a shell would act on is left to the reader."""
    return name if re.fullmatch(r"[\w.][\w.-]*", name) else f'"{name}"' if re.fullmatch(r"[\w. -]+", name) else "NAME"


def _amount(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _device(plan: FitPlan) -> str:
    return "a CPU" if plan.device == "cpu" else f"an accelerator ({plan.device})"


def _seen(plan: FitPlan) -> str:
    look = plan.look
    smallest, middle, largest = (_side(plan, quantile) for quantile in (0, 0.5, 1))
    same = smallest == largest
    sides = f"all of {largest} px" if same else f"from {smallest} to {largest} px, half of them at least {middle} px"
    lines = [f"{look.total:,} pictures; shorter sides {sides}."]
    if share := plan.stages[0].recipe.data.hold_out:
        lines.append(f"{share:.0%} of each class were held out and never trained on.")
    elif look.held_out is not None:
        lines.append("The set's own part for validation or tests was never trained on.")
    if look.labelled:
        pairs = list(zip(look.class_names, look.counts, strict=True))
        lines += ["\n| class | pictures |", "| --- | ---: |"]
        lines += [f"| {quoted(name)} | {count:,} |" for name, count in pairs[:MOST_CLASSES]]
        lines += [f"\nand {len(pairs) - MOST_CLASSES:,} classes more."] * (len(pairs) > MOST_CLASSES)
    if look.odd:
        lines.append("\nOdd among them, and what was done with them:\n\n" + _odd_table(look.odd))
    return "\n".join(lines) + "\n"


def _odd_table(odd: str) -> str:
    """Kind, number and rule of the odd pictures; not the name of the first, which is a place on a disk."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in odd.splitlines()[1:]]
    lines = ["| kind | pictures | rule |", "| --- | ---: | --- |"]
    return "\n".join(lines + [f"| {row[0]} | {row[1]} | {row[-1]} |" for row in rows])


def _side(plan: FitPlan, quantile: float) -> int:
    usable = sorted(int(side) for side in plan.look.sides if side)
    return usable[min(len(usable) - 1, int(quantile * len(usable)))]


def _trained(cascade: CascadePipeline, plan: FitPlan, record: Mapping[str, Any], recipes: Mapping[str, Recipe]) -> str:
    lines = ["| stage | makes | parameters | learned from | images seen | time | held-out loss |"]
    lines += ["| --- | --- | ---: | --- | ---: | ---: | ---: |"]
    for stage in plan.stages:
        done, recipe = record["trained"][stage.name], recipes[stage.name]
        size, small = recipe.network["sample_size"], recipe.network.get("low_res_size")
        makes = f"{size}x{size}" + (f" from {small}x{small}" if small else "")
        sides = " and ".join(f"{phase.size}x{phase.size}" for phase in recipe.phases)
        loss = "" if done["held_out_loss"] is None else f"{done['held_out_loss']:.4f}"
        cells = [f"`{stage.name}`", makes, f"{stage.parameters / 1e6:.1f}M", f"{'crops of ' if small else ''}{sides}"]
        cells += [f"{done['images']:,}", _amount(done["seconds"]), loss]
        lines.append(f"| {' | '.join(cells)} |")
    start = record["start_from"]
    begin = "All weights began as random ones."
    if start:
        begin = f"The training started from the weights of {quoted(Path(start).name)}, whose licence holds on."
    recipes_are = "The recipes, as they were in the end, are in `recipes/`; `cascade train` takes them."
    return "\n".join(lines) + f"\n\n{begin} {recipes_are}\n"


def _curve_table(logs: Mapping[str, Log]) -> str:
    """Loss on held-out pictures over the images seen, some points of each stage."""
    rows = []
    for stage, log in logs.items():
        points = [(one["images_seen"], one["validation_loss"]) for one in log if one.get("validation_loss") is not None]
        chosen = sorted({round(i * (len(points) - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)}) if points else []
        shown = ", ".join(f"{points[i][1]:.4f} ({points[i][0]:,})" for i in chosen)
        rows += [f"- `{stage}`: {shown}"] if shown else []
    return "Loss on held-out pictures, in brackets the images seen:\n\n" + "\n".join(rows) + "\n" if rows else ""


def _measured(figures: FitFigures) -> str:
    lines = []
    for name, one in figures.enlarged.items():
        lines.append(
            f"- `{name}`: {one.pictures} held-out pictures, made small and enlarged again, come to {one.psnr:.2f} dB (PSNR);"
            f" bicubic interpolation comes to {one.bicubic:.2f} dB."
        )
    if figures.distance is not None and figures.floor is not None:
        lines.append(
            f"- `base`: {figures.samples} samples have a kernel distance of {figures.distance:.1f} to the pictures that were"
            f" trained on, held-out pictures {figures.floor:.1f} (x 1000, EfficientNet-Lite's features; 0 = alike, not FID)."
        )
    if not lines:
        return "Nothing: too few pictures could be held out.\n"
    return "\n".join(lines) + "\n"


def _expected(plan: FitPlan, record: Mapping[str, Any]) -> str:
    base = record["trained"][plan.stages[0].name]
    lines = [
        "- It makes pictures like those that it saw and nothing else. It takes no text.",
        f"- Its base has seen {base['images']:,} training images, each picture about {base['images'] / plan.look.total:.0f}"
        " times. The shipped bases have seen 2 to 3 million; a longer fit, or one that starts from a model, does better.",
        "- It may come close to single pictures that it saw, the more so the fewer there were.",
        "- What may be done with it depends on the licences of the pictures, which are not known here.",
        *(f"- {quoted(remark[0].upper() + remark[1:])}." for remark in plan.remarks),
    ]
    return "\n".join(lines) + "\n"
