"""`cascade search-schedule`: which steps and scheduler of a stage give the best samples for their work."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cascade.cli.arguments import DEFAULT_MODEL, add_sampling_options, positive, scheduler, seed
from cascade.cli.sampling import Request, load
from cascade.runs.processes import add_process_options, run_images
from cascade.runs.run import read_record
from cascade.schedulers import SCHEDULERS, scheduler_class

if TYPE_CHECKING:
    from cascade.eval.report import Report

NAME = "search-schedule"
HELP = "Search steps and scheduler of a stage by what its samples score; keep the choice in a model of its own."


AIMS = ("distance", "kernel-distance", "precision", "recall", "density", "coverage")
FEWEST = 4  # samples, for overlap reaches to the third nearest
LEAST = AIMS[:2]
"""Aims of which less is better."""
TOLERANCE = 0.05
"""What of the best score may be given up for fewer evaluations."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help="a cascade (default emoji)")
    parser.add_argument("--stage", metavar="NAME", help="whose schedule is searched (default: the last)")
    parser.add_argument("--try-steps", default="4,8,16,32", metavar="N,N", help="steps to try (default 4,8,16,32)")
    parser.add_argument("--try-schedulers", metavar="NAME,NAME", help="schedulers to try (default: the model's own)")
    parser.add_argument("--num-images", type=positive, default=100, metavar="N", help="samples of each (default 100)")
    parser.add_argument(
        "--reference",
        default="drawings:heldout",
        metavar="IMAGES",
        help="real pictures that the model has not seen: a folder, an .npz, or drawings:heldout (default)",
    )
    parser.add_argument(
        "--aim",
        choices=AIMS,
        default="distance",
        help="what is best: the least EfficientNet-Lite Frechet distance (default) or kernel distance, or the most of another",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of the first sample (default 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for samples and report")
    parser.add_argument("--max-steps", type=positive, metavar="N", help="most steps that the kept schedule may have")
    parser.add_argument("--save", type=Path, metavar="DIR", help="write the model with the chosen schedule as its default here")
    add_sampling_options(parser)
    add_process_options(parser)
    parser.set_defaults(size=None)


@dataclass(frozen=True)
class Candidate:
    """A schedule and what its samples score in the aim of the search; `scheduler` None = the stage's own."""

    steps: int
    scheduler: str | None
    nfe: int
    multiply_adds: int
    value: float
    aim: str = "distance"

    @property
    def loss(self) -> float:
        """What the search makes least."""
        return self.value if self.aim in LEAST else -self.value

    @property
    def name(self) -> str:
        return f"{self.steps} steps, {self.scheduler or 'own scheduler'}"


def front(candidates: list[Candidate]) -> list[Candidate]:
    """Those that no other beats in evaluations and in the aim, the cheapest first."""
    kept: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: (c.nfe, c.loss)):
        if not kept or one.loss < kept[-1].loss:
            kept.append(one)
    return kept


def choice(candidates: list[Candidate]) -> Candidate:
    """That of the fewest evaluations among those within TOLERANCE of the best; of equal ones the better."""
    best = min(one.loss for one in candidates)
    return min((one for one in candidates if one.loss <= best + TOLERANCE * abs(best)), key=lambda one: (one.nfe, one.loss))


def run(args: Namespace) -> None:
    request = Request.of(args)
    stages = [stage.name for stage in request.manifest.stages]
    stage = args.stage or stages[-1]
    if stage not in stages:
        raise ValueError(f"--stage is {stage!r}, expected one of {', '.join(stages)}")
    if args.steps or args.scheduler:
        raise ValueError("--steps and --scheduler are what is searched; give --try-steps and --try-schedulers")
    steps = [_steps(text) for text in args.try_steps.split(",")]
    kinds = [_kind(text) for text in args.try_schedulers.split(",")] if args.try_schedulers else [None]
    if args.max_steps is not None and min(steps) > args.max_steps:
        raise ValueError(f"--max-steps is {args.max_steps}, but --try-steps begins with {min(steps)}")
    if args.num_images < FEWEST:
        raise ValueError(f"--num-images is {args.num_images}, but at least {FEWEST} samples are needed to score a schedule")
    if args.save is not None and args.save.exists():
        raise ValueError(f"--save is {args.save}, which is there already; choose a new folder")
    args.size = next(entry.size for entry in request.manifest.stages if entry.name == stage)
    found = _measured(args, stage, [(count, kind) for kind in kinds for count in steps])
    allowed = [one for one in found if args.max_steps is None or one.steps <= args.max_steps]
    chosen = choice(allowed)
    report = _report(args, stage, found, chosen)
    from cascade.eval.report import table
    from cascade.eval.report_files import write_report

    write_report(report, args.out)
    print(table(report))
    print(args.out / "report.html")
    if args.save is not None:
        _save(request, stage, chosen, args.save)
        print(args.save)


def _steps(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"--try-steps has {text!r}, expected whole numbers of at least 1, as 4,8,16")
    return int(text)


def _kind(text: str) -> str:
    if text.strip() not in SCHEDULERS:
        raise ValueError(f"--try-schedulers has {text!r}, expected some of {', '.join(SCHEDULERS)}")
    return scheduler(text.strip())


def _measured(args: Namespace, stage: str, wanted: list[tuple[int, str | None]]) -> list[Candidate]:
    """Sample and score every candidate, each in a folder of its own, so that a stopped search goes on."""
    from cascade.eval.images import image_folder
    from cascade.eval.report import number_of
    from cascade.eval.scoring import feature_set, score
    from cascade.measure.named import extractor_of, feature_cache, image_source

    extractor = extractor_of("efficientnet-lite0")
    images, _ = image_source(args.reference, size=args.size, minimum=2)
    of_real = feature_set(images, extractor, crop_rule=None, cache=feature_cache())
    found = []
    for steps, kind in wanted:
        tried = Namespace(**vars(args))
        tried.steps, tried.scheduler = f"{stage}={steps}", f"{stage}={kind}" if kind else None
        out = args.out / f"{steps:04d}-{kind or 'own'}"
        _, ended = run_images(
            Request.of(tried), out, out.name, num_images=args.num_images, seed=args.seed, labels="balanced", format="png"
        )
        if not ended:
            raise ValueError("a search runs in one process group of its own; use --processes instead of torchrun")
        samples = feature_set(image_folder(out, size=args.size, minimum=2), extractor, crop_rule=None)
        cost = (read_record(out) or {})["cost"]
        found.append(
            Candidate(
                steps,
                kind,
                sum(one["nfe"] for one in cost.values()),
                sum(one["multiply_adds"] for one in cost.values()),
                number_of(score(samples, of_real, resamples=0).values()[title_of(args.aim)]) or 0.0,
                args.aim,
            )
        )
    return found


def title_of(aim: str) -> str:
    """What scores and reports call an aim."""
    return {"distance": "EfficientNet-Lite Frechet distance", "kernel-distance": "kernel distance x 1000"}.get(aim, aim)


def _report(args: Namespace, stage: str, found: list[Candidate], chosen: Candidate) -> Report:
    from cascade.eval.report import Curve, Report, Row

    aim = title_of(args.aim)
    kinds = dict.fromkeys(one.scheduler for one in found)
    lines = {kind or "own": [(one.nfe, one.value) for one in found if one.scheduler == kind] for kind in kinds}
    on_front = front(found)
    rows = tuple(
        Row(
            name=one.name,
            values={"NFE": one.nfe, "G multiply-adds": one.multiply_adds / 1e9, aim: one.value},
            note="chosen" if one == chosen else "on the front" if one in on_front else "",
            ours=one == chosen,
        )
        for one in sorted(found, key=lambda c: (c.nfe, c.loss))
    )
    return Report(
        title=f"Schedules of {stage}",
        facts={"model": str(args.model), "reference": args.reference, "samples": f"{args.num_images} of each, balanced"},
        columns=("NFE", "G multiply-adds", aim),
        rows=rows,
        curve=Curve(title=f"{aim} against evaluations", x="NFE an image, all stages", y=aim, lines=lines),
        notes=(
            "Of EfficientNet-Lite's features, not Inception's; with few samples only rows of this table compare.",
            f"Chosen: the fewest evaluations within {TOLERANCE:.0%} of the best {aim}.",
            f"On the front: no other has both fewer evaluations and a {'lower' if args.aim in LEAST else 'higher'} {aim}.",
        ),
    )


def _save(request: Request, stage: str, chosen: Candidate, folder: Path) -> None:
    """The model with the schedule as the stage's default."""
    cascade = load(request)
    pipeline = cascade.stages[stage]
    if chosen.scheduler is not None:
        pipeline.scheduler = scheduler_class(chosen.scheduler).from_config(pipeline.scheduler.config)
    pipeline.register_to_config(num_inference_steps=chosen.steps)
    cascade.save_pretrained(folder)
