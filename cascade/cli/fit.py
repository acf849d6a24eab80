"""`cascade fit`: from a folder of pictures to a model."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.cli.arguments import duration, natural
from cascade.cli.progress import duration as spoken
from cascade.cli.progress import silence_libraries
from cascade.cli.terminal import put, say
from cascade.eval.text import printable

if TYPE_CHECKING:
    from cascade.training.fit import FittedModel
    from cascade.training.fit_plan import FitPlan

NAME = "fit"
HELP = "Make a model of a folder of pictures: base, refining stages, samples and model card in one go."

EPILOG = """
examples:
  cascade fit my-photos --out my-model
  cascade fit my-photos --out my-model --time 20m
  cascade fit my-photos --out my-model --start-from emoji
  cascade fit my-photos --out my-model --dry-run

FOLDER holds one folder of pictures for each class, or pictures without classes, or the parts of a data set (train, validation,
test). Stop it at any moment; the same command goes on. It ends with the model, its card (README.md), a sheet of samples
(samples.png), and beside it the training runs (my-model.runs) with a recipe for each stage, which `cascade train` takes.
"""
_SHOWN = 12
"""Classes that are listed before they are only counted."""


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="FOLDER", help="of pictures; or shards, as 'set/train-*.tar'")
    add("--out", type=Path, required=True, metavar="MODEL", help="new folder of the model, or that of the fit to go on with")
    text = "that everything may take, as 90s, 20m or 1h30m (default: 3h)"
    add("--time", dest="seconds", type=duration, metavar="TIME", help=text)
    text = "train on from this model's stages instead of from nothing: emoji, imagenet, or any that `cascade train` made"
    add("--start-from", metavar="M", help=text)
    add("--workers", type=natural, metavar="N", help="processes that read the pictures (default: one for each free core)")
    add("--dry-run", action="store_true", help="look at the pictures, say what would be done and what it takes; train nothing")


def run(args: Namespace) -> None:
    from cascade.cli.train import Watch
    from cascade.data.checking import cores
    from cascade.data.looking import look
    from cascade.training.fit import DEFAULT_SECONDS, fit
    from cascade.training.fit_plan import plan_fit

    silence_libraries()
    with Watch() as watch:
        if args.dry_run:
            found = look(args.source, cores() if args.workers is None else args.workers, watch)
            plan = plan_fit(found, args.seconds or DEFAULT_SECONDS, args.start_from)
        else:
            told: dict[str, Any] = {"on_progress": watch, "on_report": watch.report, "on_validation": watch.validation}
            told |= {"on_message": watch.say, "on_plan": lambda plan: say(_described(plan))}
            try:
                made = fit(args.source, args.out, time=args.seconds, start_from=args.start_from, workers=args.workers, **told)
            except KeyboardInterrupt as stop:
                raise RuntimeError(f"{str(stop) or 'stopped'}; the same command goes on") from None
    put(*(_described(plan) if args.dry_run else _result(made, plan_classes(made.folder))).split("\n"))


def _described(plan: FitPlan) -> str:
    """What was found, and what is going to be done, in some lines."""
    look = plan.look
    usable = look.sides[look.sides > 0]
    pairs = [f"{printable(name)} {count:,}" for name, count in zip(look.class_names, look.counts, strict=True)]
    classes = f"{len(pairs):,} classes: " + ", ".join(pairs[:_SHOWN]) + (", ..." if len(pairs) > _SHOWN else "")
    lines = [
        f"{look.total:,} pictures, " + (classes if look.labelled else "no class folders, so no classes"),
        f"shorter sides from {usable.min():,} to {usable.max():,} px",
    ]
    lines += [printable(line) for line in look.odd.splitlines()]
    lines += [printable(remark) for remark in plan.remarks]
    lines.append(
        f"plan: {spoken(plan.seconds)} in all on this {plan.device}, the last {spoken(plan.finish)} for samples, measures, card"
    )
    time = plan.seconds - plan.finish
    for stage in plan.stages:
        size, small = stage.recipe.network["sample_size"], stage.recipe.network.get("low_res_size")
        makes = f"{small} -> {size} px" if small else f"{size} px"
        share = stage.share * time
        lines.append(
            f"  {stage.name}: {makes}, {printable(stage.network)} network of {stage.parameters / 1e6:.1f}M parameters,"
            f" {spoken(share)}, {stage.images_per_second:.3g} images a second, about {stage.images_per_second * share:,.0f}"
            + ("" if stage.pictures == 1 else f", of {stage.pictures:.0%} of the pictures")
        )
    return "\n".join(lines)


def plan_classes(folder: Path) -> str:
    """The option that asks the model in a folder for its first class; "" for a model without classes."""
    from cascade.folder import Manifest

    classes = Manifest.read(folder).classes
    return "" if classes is None else f" --class {shell_word(classes.names[0])}"


def shell_word(name: str) -> str:
    """A name as a command line has it."""
    import shlex

    return shlex.quote(printable(name))


def _result(made: FittedModel, ask: str) -> str:
    """What a fit ended in: figures, files, and what to do with them."""
    lines = []
    for name, one in made.figures.enlarged.items():
        lines.append(f"{name}: {one.psnr:.2f} dB on {one.pictures} held-out pictures, bicubic interpolation {one.bicubic:.2f} dB")
    if made.figures.distance is not None and made.figures.floor is not None:
        lines.append(
            f"base: kernel distance x 1000 of {made.figures.samples} samples {made.figures.distance:.1f}, of held-out pictures"
            f" {made.figures.floor:.1f}"
        )
    lines += [
        f"{spoken(made.seconds)} in all",
        f"look at: {made.sheet.absolute().as_uri()}",
        f"card: {made.folder / 'README.md'}; recipes and runs: {made.runs}, which the model doesn't need",
        f"more: generate --model {shell_word(str(made.folder))}{ask}",
        str(made.folder),
    ]
    return "\n".join(lines)
