"""Which steps and scheduler of a stage give the best samples for their work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from cascade.runs.run import RunOptions, sample_run
from cascade.schedulers import scheduler_class
from cascade.stage_sampling import check_name

if TYPE_CHECKING:
    from cascade.eval.report import Report
    from cascade.pipeline import CascadePipeline

AIMS = {
    "distance": "EfficientNet-Lite Frechet distance",
    "kernel-distance": "kernel distance x 1000",
    **{name: name for name in ("precision", "recall", "density", "coverage")},
}
"""What can be searched for, and what scores and reports call it."""
LEAST = ("distance", "kernel-distance")  # aims of which less is better
TOLERANCE = 0.05  # what of the best score may be given up for fewer evaluations


@dataclass(frozen=True)
class Candidate:
    """A schedule (`scheduler` None = the stage's own), its NFE and multiply-adds per image in all stages that run, and what its
    samples score in the aim of the search."""

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


@dataclass(frozen=True)
class ScheduleSearch:
    """What a search found: every candidate, the chosen one, and the report that was written."""

    stage: str
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    report: Report

    def apply(self, cascade: CascadePipeline) -> None:
        """Make the chosen schedule the stage's default, as `cascade.save_pretrained` then keeps it."""
        pipeline = cascade.stages[self.stage]
        if self.chosen.scheduler is not None:
            pipeline.scheduler = scheduler_class(self.chosen.scheduler).from_config(pipeline.scheduler.config)
        pipeline.register_to_config(num_inference_steps=self.chosen.steps)


def search_schedule(
    cascade: CascadePipeline,
    out: str | Path,
    *,
    stage: str | None = None,
    steps: Sequence[int] = (4, 8, 16, 32),
    schedulers: Sequence[str] | None = None,
    num_images: int = 100,
    reference: str | Path = "drawings:heldout",
    aim: str = "distance",
    seed: int = 0,
    max_steps: int | None = None,
    **run: Unpack[RunOptions],
) -> ScheduleSearch:
    """Sample and score every schedule, each in a folder of its own, so that a stopped search goes on; choose, and write a report.

    Chosen is that of the fewest evaluations within `TOLERANCE` of the best.

    Args:
        cascade: The model.
        out: Folder of samples and report.
        stage: Whose schedule is searched; None = the last.
        steps: Steps to try, with each scheduler.
        schedulers: Short names to try; None = the stage's own alone.
        num_images: Samples of each, in turn of all classes.
        reference: Real pictures that the model has not seen, as `cascade.measure.named.image_source` takes them.
        aim: What is best, one of `AIMS`: the least distance or kernel distance, or the most of another.
        seed: Of the first sample.
        max_steps: Most that the chosen schedule may have; None = any.
        **run: `sampling`, `batch_size`, `processes`, `threads` and `on_progress`, as `sample_run` takes them.

    Raises:
        ValueError: if there is nothing to choose from, or the samples can't be scored.
    """
    from cascade.eval.images import image_folder
    from cascade.eval.report import number_of
    from cascade.eval.report_files import write_report
    from cascade.eval.scoring import MANIFOLD_K, feature_set, score
    from cascade.measure.comparisons import kept_features
    from cascade.measure.named import extractor_of, image_source

    out, name = Path(out), stage or list(cascade.stages)[-1]
    check_name(name, cascade.stages)
    if aim not in AIMS:
        raise ValueError(f"aim is {aim!r}, expected one of {', '.join(AIMS)}")
    if max_steps is not None and min(steps) > max_steps:
        raise ValueError(f"max_steps is {max_steps}, but the fewest steps to try are {min(steps)}")
    if num_images <= MANIFOLD_K:
        raise ValueError(f"num_images is {num_images}, but at least {MANIFOLD_K + 1} samples are needed to score a schedule")
    given, size, found = cascade.sampling(run.get("sampling")), cascade.sizes[name], []
    extractor = extractor_of("efficientnet-lite0")
    images, _ = image_source(str(reference), size=size, minimum=2)
    of_real = kept_features(images, extractor, None)
    kinds: Sequence[str | None] = schedulers or [None]
    for kind, count in product(kinds, steps):
        own = replace(given[name], num_inference_steps=count, scheduler=kind or given[name].scheduler)
        run["sampling"] = given | {name: own}
        folder = out / f"{count:04d}-{kind or 'own'}"
        made = sample_run(cascade, folder, num_images=num_images, size=size, seed=seed, **run)
        if not made.complete:
            raise ValueError("a search runs in one process group of its own; give processes instead of using torchrun")
        samples = feature_set(image_folder(folder, size=size, minimum=2), extractor, crop_rule=None)
        value = number_of(score(samples, of_real, resamples=0).values()[AIMS[aim]]) or 0.0
        nfe, work = (sum(one[key] for one in made.record["cost"].values()) for key in ("nfe", "multiply_adds"))
        found.append(Candidate(count, kind, nfe, work, value, aim))
    chosen = choice([one for one in found if max_steps is None or one.steps <= max_steps])
    facts = {"model": cascade.name, "reference": str(reference), "samples": f"{num_images} of each, balanced"}
    report = _report(name, aim, facts, found, chosen)
    write_report(report, out)
    return ScheduleSearch(name, tuple(found), chosen, report)


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in evaluations and in the aim, the cheapest first."""
    kept: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: (c.nfe, c.loss)):
        if not kept or one.loss < kept[-1].loss:
            kept.append(one)
    return kept


def choice(candidates: Sequence[Candidate]) -> Candidate:
    """That of the fewest evaluations among those within TOLERANCE of the best; of equal ones the better."""
    best = min(one.loss for one in candidates)
    return min((one for one in candidates if one.loss <= best + TOLERANCE * abs(best)), key=lambda one: (one.nfe, one.loss))


def _report(stage: str, aim: str, facts: dict[str, str], found: Sequence[Candidate], chosen: Candidate) -> Report:
    from cascade.eval.report import Curve, Report, Row

    title, on_front = AIMS[aim], front(found)
    kinds = dict.fromkeys(one.scheduler for one in found)
    lines = {kind or "own": [(one.nfe, one.value) for one in found if one.scheduler == kind] for kind in kinds}
    rows = tuple(
        Row(
            name=one.name,
            values={"NFE": one.nfe, "G multiply-adds": one.multiply_adds / 1e9, title: one.value},
            note="chosen" if one == chosen else "on the front" if one in on_front else "",
            ours=one == chosen,
        )
        for one in sorted(found, key=lambda c: (c.nfe, c.loss))
    )
    return Report(
        title=f"Schedules of {stage}",
        facts=facts,
        columns=("NFE", "G multiply-adds", title),
        rows=rows,
        curve=Curve(title=f"{title} against evaluations", x="NFE per image, all stages", y=title, lines=lines),
        notes=(
            "Of EfficientNet-Lite's features, not Inception's; with few samples only rows of this table compare.",
            f"Chosen: the fewest evaluations within {TOLERANCE:.0%} of the best {title}.",
            f"On the front: no other has both fewer evaluations and a {'lower' if aim in LEAST else 'higher'} {title}.",
        ),
    )
