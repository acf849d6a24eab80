"""`cascade train`: from a recipe to a finished stage."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade.cli import train_ema, train_plot
from cascade.cli.arguments import duration, natural
from cascade.cli.progress import Bars, silence_libraries
from cascade.cli.terminal import put, say

if TYPE_CHECKING:
    from cascade.stages.training.meter import Report
    from cascade.stages.training.validation import ValidationReport

NAME = "train"
HELP = "Train one stage from a recipe, or go on with a training run that was stopped."
SUBCOMMANDS = (train_plot, train_ema)
"""`cascade train plot ...`; a recipe of such a name is given as ./plot."""

EPILOG = """
examples:
  cascade train emoji/base64
  cascade train emoji/base64 optimization.learning_rate=1e-4 phases.0.batch_size=32 --run runs/try
  cascade train my-recipe.yaml --dry-run
  cascade train my-recipe.yaml --time 9m

The run's folder keeps the recipe (recipe.yaml), the class names (classes.json), the curves (log.jsonl; tensorboard --logdir shows
them too), samples (samples.png: the newest below earlier ones; all of them in samples/), and checkpoints. The same command goes
on where the last checkpoint stands and ends with the weights of a run that was never stopped. Images per second leave out
checkpoints, validation and samples; the time left counts them.

when it is trained, or while it is:
""" + "\n".join(f"  cascade train {command.NAME:<6} {command.HELP}" for command in SUBCOMMANDS)


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="CONFIG", help="recipe: a YAML file, or the name of a shipped one")
    add("settings", nargs="*", default=[], metavar="KEY=VALUE", help="replaces a value of the recipe; inner keys with dots")
    text = "folder of the run (default: runs/ and the recipe's name); --run-dir if torchrun takes --run for an option of its own"
    add("--run", "--run-dir", dest="folder", type=Path, metavar="DIR", help=text)
    add("--export", type=Path, metavar="DIR", help="folder of the finished stage (default: stage in the run's folder)")
    text = "where to show the curves: tensorboard (default, if installed), wandb or another that accelerate knows; repeatable"
    add("--track", action="append", metavar="NAME", help=text)
    text = "processes that prepare the data (default: 0 for drawings, else the free cores, at most 8)"
    add("--workers", type=natural, metavar="N", help=text)
    text = "fit the recipe's lengths to this time, as 9m, 90s or 1h30m: by the speed of this machine, everything included"
    add("--time", dest="seconds", type=duration, metavar="TIME", help=text)
    add("--dry-run", action="store_true", help="show the whole recipe and what it costs on this machine, and train nothing")


def run(args: Namespace) -> None:
    from cascade.cli.dry_run import described
    from cascade.folder import STAGE
    from cascade.stages.training.processes import this_process
    from cascade.training.export import check_export
    from cascade.training.recipes import load_recipe
    from cascade.training.stage import run_folder, train_stage

    silence_libraries()
    recipe = load_recipe(args.config, args.settings)
    folder = args.folder or run_folder(recipe)
    target = args.export or folder / STAGE
    check_export(target)
    if args.dry_run:
        put(*described(recipe, folder, target).split("\n"))
        return
    try:
        with Watch() as watch:
            told: dict[str, Any] = {"on_progress": watch, "on_report": watch.report, "on_validation": watch.validation}
            told |= {"on_message": watch.say, "trackers": args.track, "workers": args.workers}
            told["seconds"] = args.seconds
            made = train_stage(recipe, folder, target, **told)
    except KeyboardInterrupt as stop:
        raise RuntimeError(f"{str(stop) or 'stopped'}; the same command goes on from the last checkpoint in {folder}") from None
    if this_process().is_main_process:
        if made.sheet is not None:
            say(f"look at: {made.sheet.absolute().as_uri()}")
        put(made.folder)


class Watch(Bars):
    """Shows each task, and at every step of a training run what was last measured in it."""

    def __init__(self) -> None:
        super().__init__()
        self.training = "training"
        self.last: Report | None = None
        self.validated = ""

    def __call__(self, title: str, done: int, total: int) -> None:
        if not title.startswith("training"):
            super().__call__(title, done, total)
            return
        if title != self.training:  # that of another stage
            self.training, self.last, self.validated = title, None, ""
        if done < total:  # else a report follows, with the last figures
            self._step(done, total)

    def report(self, now: Report) -> None:
        self.last = now
        self._step(now.images_seen, now.total_images)

    def validation(self, now: ValidationReport) -> None:
        self.validated = f", held-out {now.loss:.4f}" + (f" ({now.psnr:.2f} dB)" if now.psnr is not None else "")

    def say(self, message: str) -> None:
        self.shown.say(message)

    def _step(self, images_seen: int, total: int) -> None:
        self.turn_to(self.training, "images")
        note = "" if self.last is None else f"{self.last.size} px, loss {self.last.loss:.4f}{self.validated}"
        self.shown.update(images_seen, total, note, None if self.last is None else self.last.images_per_second)
