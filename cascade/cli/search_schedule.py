"""`cascade search-schedule`: which steps and scheduler of a stage give the best samples for their work."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cascade.cli.arguments import DEFAULT_MODEL, RUN_OPTIONS, add_run_options, given, positive, scheduler, seed
from cascade.cli.progress import Bars, show
from cascade.cli.request import Request
from cascade.cli.terminal import put
from cascade.folder import Manifest
from cascade.measure.schedule_search import AIMS, search_schedule
from cascade.models import resolve

NAME = "search-schedule"
HELP = "Search steps and scheduler of a stage by what its samples score; keep the choice in a model of its own."


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help="a cascade (default emoji)")
    add("--stage", metavar="NAME", help="whose schedule is searched (default: the last)")
    for name, kind, default, metavar, text in (
        ("steps", positive, [4, 8, 16, 32], "N,N", "steps to try (default 4,8,16,32)"),
        ("schedulers", scheduler, None, "NAME,NAME", "schedulers to try (default: the model's own)"),
    ):
        add(f"--try-{name}", dest=name, type=_several(kind), default=default, metavar=metavar, help=text)
    add("--num-images", type=positive, default=100, metavar="N", help="samples of each (default 100)")
    text = "real pictures that the model has not seen: a folder, an .npz, or drawings:heldout (default)"
    add("--reference", default="drawings:heldout", metavar="IMAGES", help=text)
    text = "what is best: the least EfficientNet-Lite Frechet distance (default) or kernel distance, or the most of another"
    add("--aim", choices=list(AIMS), default="distance", help=text)
    add("--seed", type=seed, default=0, metavar="S", help="of the first sample (default 0)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for samples and report")
    add("--max-steps", type=positive, metavar="N", help="most steps that the kept schedule may have")
    add("--save", type=Path, metavar="DIR", help="write the model with the chosen schedule as its default here")
    add_run_options(parser)


def run(args: Namespace) -> None:
    sizes = {stage.name: stage.size for stage in Manifest.read(resolve(args.model)).stages}
    stage = args.stage or list(sizes)[-1]
    if stage not in sizes:
        raise ValueError(f"--stage is {stage!r}, expected one of {', '.join(sizes)}")
    if args.num_inference_steps or args.scheduler:
        raise ValueError("--steps and --scheduler are what is searched; give --try-steps and --try-schedulers")
    if args.save is not None and args.save.exists():
        raise ValueError(f"--save is {args.save}, which is there already; choose a new folder")
    request = Request.of(args, sizes[stage])
    cascade, sampling = (request if args.save is None else replace(request, size=max(sizes.values()))).load()
    with Bars() as bars:
        options = given(args, "steps", "schedulers", "num_images", "reference", "aim", "seed", "max_steps", *RUN_OPTIONS)
        found = search_schedule(cascade, args.out, stage=stage, **options, sampling=sampling, on_progress=bars)
    show(found.report, args.out)
    if args.save is not None:
        found.apply(cascade)
        cascade.save_pretrained(args.save)
        put(args.save)


def _several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values with commas between them."""
    return lambda text: [kind(part.strip()) for part in text.split(",")]
