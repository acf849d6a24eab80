"""`generate`, and `cascade generate`: pictures of classes."""

from __future__ import annotations

import json
import math
import shlex
import time
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cascade
from cascade import png as pictures
from cascade.cli import screen
from cascade.cli.arguments import Parser, add_model_options, parsed, positive, seed
from cascade.cli.errors import guarded
from cascade.cli.program import leave
from cascade.cli.request import Request, StageLines, chunks
from cascade.cli.terminal import put

if TYPE_CHECKING:
    from PIL.Image import Image

    from cascade.pipeline import CascadePipeline
    from cascade.stage_sampling import Sampling

NAME = "generate"
HELP = "Make pictures of classes."

EPILOG = """
examples:
  generate --class cat
  generate --class cat --class 12 -n 4 --seed 1 --out pets/
  generate --class cat --class dog -n 4 --grid --out grid.png

Files are called class-seedN.png (cat-seed0.png), a grid class-class-seedN-grid.png, the pictures of an earlier stage
class-seedN-STAGE.png. The same line makes the same files again. A picture that this program made is replaced, any other
file never.
Every picture carries the command that makes it; `cascade inspect FILE` shows it. A JPEG (--out cat.jpg) is smaller and not exact.
"""


MOST_PICTURES = 100_000


def program() -> NoReturn:
    """`generate` with the arguments of this process, which ends with it."""
    leave(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run `generate` with these arguments, None = those of the process; returns the exit code."""

    def action() -> None:
        parser = Parser(prog="generate", description=HELP, epilog=EPILOG)
        parser.add_argument("--version", action="version", version=f"cascade-diffusion {cascade.__version__}")
        add_arguments(parser)
        run(parsed(parser, argv))

    return guarded("generate", action)


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("words", nargs="*", default=[], help=SUPPRESS)  # for `generate cat`, which is told how it is written
    text = "name, index or WordNet id; may be repeated; see `cascade classes`"
    add("--class", dest="classes", action="append", metavar="C", help=text)
    add("-n", dest="count", type=positive, default=1, metavar="N", help="pictures of each class (default 1)")
    add("--seed", type=seed, default=0, metavar="S", help="of the first picture, the next have S+1, S+2, ... (default 0)")
    add("--size", type=positive, metavar="PX", help="stop at the stage that makes this size (default: the model's own)")
    text = "folder, or a .png or .jpg for a single picture or a grid (default: the current folder)"
    add("--out", type=Path, metavar="PATH", help=text)
    add("--grid", action="store_true", help="one sheet instead of single files: a row for each class")
    add("--stages", action="store_true", help="also save the pictures of the stages before the last")
    told = parser.add_mutually_exclusive_group()
    told.add_argument("--json", action="store_true", help="print what was made as JSON instead of the names of the files")
    told.add_argument("--show", action="store_true", help="draw each picture in the terminal, if that can (kitty, iTerm2, sixel)")
    add_model_options(parser)


def run(args: Namespace) -> None:
    begun = time.monotonic()
    if args.words:
        meant = shlex.join(word for name in args.words for word in ("--class", name))
        raise ValueError(f"{shlex.join(args.words)} has no option before it; classes are given as {meant}")
    job = _Job.of(args)
    pictures.check_targets([path for plan in job.plans for path in job.paths(plan)])
    how = screen.protocol() if args.show else None
    pipeline, sampling = job.request.load()
    files = []
    for entry in _made(job, pipeline, sampling):
        files.append(entry)
        if not args.json:
            put(entry["path"])
        if how is not None:
            screen.show(Path(entry["path"]), how)
    if args.json:
        settings = pipeline.described(list(job.request.sizes), sampling, args.batch_size)
        made = {"model": pipeline.name, "version": cascade.__version__, "settings": settings, "files": files}
        put(*json.dumps(made | {"seconds": round(time.monotonic() - begun, 3)}, indent=2).split("\n"))


@dataclass(frozen=True)
class _Plan:
    """A file for the last stage, and one for each other stage with --stages, of one picture or of the grid."""

    labels: tuple[int | None, ...]
    seeds: tuple[int, ...]
    stem: str


@dataclass(frozen=True)
class _Job:
    """What is to be made: every picture by its class and seed, and the files."""

    request: Request
    args: Namespace
    labels: list[int | None]
    seeds: list[int]
    plans: list[_Plan]

    @classmethod
    def of(cls, args: Namespace) -> _Job:
        request = Request.of(args, args.size)
        labels = _labels(request, args.classes or [])
        if args.count * len(labels) > MOST_PICTURES:
            asked = f"{args.count * len(labels):,} pictures are asked for, expected at most {MOST_PICTURES:,}"
            raise ValueError(f"{asked}; `cascade sample` makes more, in a run that can be stopped")
        seeds = list(range(args.seed, args.seed + args.count))
        stems = pictures.stems(request.classes, labels)
        if args.grid:
            name = f"{pictures.joined(stems)}-seed{args.seed}-grid"
            plans = [_Plan(tuple(labels), tuple(seeds), name)]
        else:
            plans = [_Plan((label,), (s,), f"{stem}-seed{s}") for label, stem in zip(labels, stems, strict=True) for s in seeds]
        if pictures.is_picture(args.out) and len(plans) > 1:
            asked = f"--out is {args.out}, but {len(plans)} pictures are asked for"
            raise ValueError(f"{asked}; give a folder, or --grid for one sheet")
        return cls(request, args, labels, seeds, plans)

    @property
    def saved(self) -> list[str]:
        """Stages whose pictures are saved, the last one first."""
        names = list(self.request.sizes)
        return names[::-1] if self.args.stages else names[-1:]

    def path(self, plan: _Plan, stage: str) -> Path:
        suffix = "" if stage == self.saved[0] else f"-{stage}"
        out = self.args.out
        if pictures.is_picture(out):
            return out.with_name(f"{out.stem}{suffix}{out.suffix}")
        return (out or Path()) / f"{plan.stem}{suffix}.png"

    def paths(self, plan: _Plan) -> list[Path]:
        return [self.path(plan, stage) for stage in self.saved]

    def origin(self, plan: _Plan, stage: str, settings: dict[str, Any]) -> pictures.Origin:
        """What the file of this stage says of itself."""
        labels = [label for label in plan.labels if label is not None]
        words = ["generate", *(word for label in labels for word in ("--class", self.request.query(label)))]
        words += ["-n", str(len(plan.seeds))] * (len(plan.seeds) > 1) + ["--seed", str(plan.seeds[0])]
        words += ["--grid"] * self.args.grid
        earlier = None if stage == self.saved[0] else self.request.sizes[stage]
        return self.request.origin(words, labels, plan.seeds, settings, earlier)


def _labels(request: Request, queries: Sequence[str]) -> list[int | None]:
    """Index of every class; [None] for a model that is asked without."""
    if not queries:
        if request.classes is not None:
            raise ValueError(
                f"no class is given: {request.manifest.name!r} makes {len(request.classes)} of them, as --class"
                f" {request.query(0)}; `cascade classes --model {request.model}` lists them"
            )
        return [None]
    labels = [request.label(query) for query in queries]
    first: dict[int, int] = {}
    for place, label in enumerate(labels):
        if first.setdefault(label, place) != place:
            raise ValueError(f"class {queries[place]!r} is given twice; -n makes several pictures of a class")
    return list(labels)


def _made(job: _Job, pipeline: CascadePipeline, sampling: Sampling) -> Iterator[dict[str, Any]]:
    """Run the model and write each file as soon as its pictures are there; gives what the JSON says of each."""
    args = job.args
    wanted = [(label, s) for label in job.labels for s in job.seeds]
    settings = {
        stage: pipeline.described(pipeline.stages_to(pipeline.sizes[stage]), sampling, args.batch_size) for stage in job.saved
    }
    kept: dict[str, list[Image]] = {stage: [] for stage in job.saved}
    for part in chunks(len(wanted), args.batch_size):
        labels, seeds = [wanted[i][0] for i in part], [wanted[i][1] for i in part]
        what = f"{len(wanted)} picture{'s' * (len(wanted) > 1)}"
        if len(part) < len(wanted):
            what = f"pictures {part.start + 1} to {part.stop} of {len(wanted)}"
        out: Any = pipeline(
            class_labels=None if labels[0] is None else [label for label in labels if label is not None],
            num_images_per_class=len(seeds) if labels[0] is None else 1,
            seeds=seeds,
            size=job.request.size,
            sampling=sampling,
            callback_on_step_end=StageLines(pipeline, what),
            batch_size=args.batch_size,
        )
        for stage in job.saved:
            images = out.stages[stage].images
            if args.grid:
                kept[stage] += images
                continue
            for i, image in zip(part, images, strict=True):
                yield _write(job, settings, job.plans[i], stage, image)
    if args.grid:
        for stage, images in kept.items():
            columns = len(job.seeds) if len(job.labels) > 1 else math.ceil(math.sqrt(len(images)))
            rows = [images[start : start + columns] for start in range(0, len(images), columns)]
            yield _write(job, settings, job.plans[0], stage, pictures.grid(rows))


def _write(job: _Job, settings: Mapping[str, Any], plan: _Plan, stage: str, image: Image) -> dict[str, Any]:
    path = job.path(plan, stage)
    origin = job.origin(plan, stage, settings[stage])
    pictures.write(path, image, origin)
    return {
        "path": str(path),
        "classes": list(origin.class_names),
        "class_indices": list(origin.class_indices),
        "seeds": list(plan.seeds),
        "stage": stage,
        "size": job.request.sizes[stage],
        "command": origin.command,
    }
