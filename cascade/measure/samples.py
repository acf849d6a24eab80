"""Protocols of samples: sample, score, and make a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade.eval.features import FeatureExtractor
from cascade.eval.images import ImageSet, image_folder
from cascade.eval.report import Picture, Report, Row, number_of
from cascade.eval.scoring import FEWEST_FOR_PUBLISHED, MANIFOLD_K, FeatureSet, Scores, score
from cascade.measure.comparisons import (
    SHOWN,
    Drawings,
    by_class,
    closest_in_features,
    columns_of,
    cost_values,
    distance_curve,
    features_of,
    published_rows,
    reference_features,
    table_values,
)
from cascade.measure.named import extractor_of, image_source, reference_source
from cascade.measure.protocols import Protocol
from cascade.pipeline import CascadePipeline
from cascade.progress import OnProgress, part
from cascade.runs.run import SampleRun, sample_run
from cascade.runs.share import image_name, without_bars, write_png

if TYPE_CHECKING:
    from cascade.eval.references import Reference

FLOOR_SEED = 0


@dataclass(frozen=True)
class SampleJob:
    """What is asked for; see `cascade.measure.benchmark.benchmark`.

    run: Arguments of `sample_run`.
    """

    cascade: CascadePipeline
    protocol: Protocol
    out: Path
    num_images: int
    seed: int
    reference: str
    weights: Path | None
    resamples: int
    on_progress: OnProgress | None
    run: Mapping[str, Any]

    def features(self, images: ImageSet, extractor: FeatureExtractor, what: str) -> FeatureSet:
        return features_of(images, extractor, self.protocol.crop_rule, what, self.on_progress)

    def scores(self, samples: FeatureSet, reference: Reference | FeatureSet, real: FeatureSet | None, what: str) -> Scores:
        told = part(self.on_progress, f"intervals of {what}")
        return score(samples, reference, real, resamples=self.resamples, on_resample=told)


@dataclass(frozen=True)
class SampleSet:
    """The samples of one run, and their features."""

    run: SampleRun
    images: ImageSet
    features: FeatureSet

    @property
    def asked(self) -> np.ndarray:
        """Class of each, [N]; 0 for a model without classes."""
        return np.array([label or 0 for label in self.run.labels])


def samples_report(job: SampleJob) -> Report | None:
    """Sample, score and compare; None while other processes still make their share of the samples.

    The samples are kept in `samples/`, or in a folder for each seed of the protocol.
    """
    protocol = job.protocol
    if job.num_images <= MANIFOLD_K:
        raise ValueError(f"num_images is {job.num_images}, but at least {MANIFOLD_K + 1} are needed to score them")
    real = reference_source(
        job.reference,
        image_size=protocol.size,
        extractor=protocol.extractor,
        crop_rule=protocol.crop_rule,
        minimum=MANIFOLD_K + 1,
        progress=part(job.on_progress, "drawings"),
    )
    extractor = extractor_of(protocol.extractor, job.weights, str(job.cascade.device))
    heldout, labels = _heldout(job)
    runs = []
    for seed in protocol.seeds:
        folder = job.out / (f"samples-{job.seed + seed}" if len(protocol.seeds) > 1 else "samples")
        plan: Any = {"num_images": job.num_images, "size": protocol.size, "seed": job.seed + seed, "labels": labels}
        runs.append(sample_run(job.cascade, folder, **plan, **job.run, on_progress=job.on_progress))
    if not all(file.is_file() for run in runs for file in run.files):
        return None
    sets = []
    for run in runs:
        images = image_folder(run.folder, size=protocol.size)
        sets.append(SampleSet(run, images, job.features(images, extractor, "the samples")))
    rows, details, pictures = _compared(job, sets, real, extractor, heldout)
    first, limits = sets[0], _limits(protocol, job.num_images)
    rows = [*rows, *published_rows(protocol, bool(limits))]
    return Report(
        title=f"{job.cascade.name}: {protocol.title}",
        facts=_facts(job, sets),
        columns=columns_of(rows, ("NFE",)),
        rows=tuple(rows),
        notes=(*limits, *protocol.notes, *_interval_notes(job.resamples)),
        pictures=(by_class(first.images, first.asked, job.cascade.classes), *_stages(job, first), *pictures),
        curve=distance_curve(rows, protocol.distance),
        details=details | {"run": first.run.record},
    )


def _heldout(job: SampleJob) -> tuple[ImageSet | None, Any]:
    """Held-out drawings for the floor, as many as samples, where the protocol has one; and the labels of the samples."""
    protocol = job.protocol
    if protocol.labels != "heldout":
        return None, protocol.labels
    every, labels = image_source("drawings:heldout", size=protocol.size, progress=part(job.on_progress, "drawings"))
    assert labels is not None
    if job.num_images > len(every):
        raise ValueError(
            f"num_images is {job.num_images}, but there are only {len(every)} held-out drawings for the floor of {protocol.name}"
        )
    chosen = np.sort(np.random.default_rng(FLOOR_SEED).permutation(len(every))[: job.num_images])
    return every.take(chosen), tuple(int(label) for label in labels[chosen])


def _compared(
    job: SampleJob,
    sets: list[SampleSet],
    real: ImageSet | Reference,
    extractor: FeatureExtractor,
    heldout: ImageSet | None,
) -> tuple[list[Row], dict[str, Any], list[Picture]]:
    """Our rows, everything measured, and pictures of neighbours."""
    reference, theirs = reference_features(real, extractor, job.protocol.crop_rule, job.on_progress)
    scores = [job.scores(each.features, reference, theirs, "the samples") for each in sets]
    rows = _sample_rows(job, sets, scores)
    details: dict[str, Any] = {"scores": {f"seed {s.run.plan.seed}": asdict(one) for s, one in zip(sets, scores, strict=True)}}
    if theirs is None or not isinstance(real, ImageSet):
        return rows, details, []
    first = sets[0]
    if heldout is None:
        return rows, details, [closest_in_features(first.features, first.images, theirs, real)]
    floor = job.features(heldout, extractor, "held-out drawings")
    floor_scores = job.scores(floor, reference, theirs, "the floor")
    drawings = Drawings((theirs, real), (floor, heldout))
    extra = drawings.values(first.features, first.images, first.asked, job.resamples)
    rows[0] = Row(name=rows[0].name, values={**rows[0].values, **extra}, note=rows[0].note, ours=True)
    values = table_values(floor_scores, job.protocol.distance) | drawings.values(floor, heldout, first.asked, job.resamples)
    note = f"{len(heldout):,} real drawings of the same classes"
    rows.append(Row(name="held-out drawings (floor)", values=values, note=note, ours=True))
    details["scores"]["heldout"] = asdict(floor_scores)
    return rows, details, drawings.pictures(first.features, first.images)


def _sample_rows(job: SampleJob, sets: list[SampleSet], scores: list[Scores]) -> list[Row]:
    """A row for each seed; where there are several, first one of the least distance."""
    name, distance, rows = job.cascade.name, job.protocol.distance, []
    for each, one in zip(sets, scores, strict=True):
        cost, work = cost_values(each.run.record["cost"])
        note = ", ".join([f"{len(each.images):,} samples", *[work] * bool(work)])
        title = name if len(sets) == 1 else f"{name}, seed {each.run.plan.seed}"
        rows.append(Row(name=title, values=table_values(one, distance) | cost, note=note, ours=True))
    if len(rows) == 1:
        return rows
    least = min(rows, key=lambda row: number_of(row.values[distance]) or 0.0)
    note = f"the set of least distance, {least.name.rpartition(', ')[2]}; {least.note}"
    return [Row(name=f"{name}, least of {len(rows)} seeds", values=least.values, note=note, ours=True), *rows]


def _stages(job: SampleJob, samples: SampleSet) -> list[Picture]:
    """What each stage made of the first samples: earlier stages are run again with the same seeds, the last is the samples'."""
    cascade, labels = job.cascade, samples.asked[:SHOWN]
    names = cascade.stages_to(job.protocol.size)
    if len(names) < 2:
        return []
    folders = {name: job.out / "stages" / name for name in names[:-1]}
    if not all((folder / image_name(i)).is_file() for folder in folders.values() for i in range(len(labels))):
        told = part(job.on_progress, "stages of the first samples")
        with without_bars(cascade):
            for i, label in enumerate(labels):
                told(i, len(labels))
                made: Any = cascade(
                    None if cascade.num_classes is None else [int(label)],
                    seeds=[samples.run.plan.seed + i],
                    size=cascade.sizes[names[-2]],
                    sampling=job.run["sampling"],
                    batch_size=job.run["batch_size"],
                )
                for name, folder in folders.items():
                    write_png(folder / image_name(i), made.stages[name].images[0])
            told(len(labels), len(labels))
    shown = [*(image_folder(folder) for folder in folders.values()), samples.images]
    rows = [
        (f"{name}, {cascade.sizes[name]} px", images.take(np.arange(len(labels))).array())
        for name, images in zip(names, shown, strict=True)
    ]
    caption = "The first samples after each stage, shown equally large; each stage starts from the picture above."
    return [Picture(title="Stages", caption=caption, rows=tuple(rows))]


def _limits(protocol: Protocol, num_images: int) -> list[str]:
    """Why our row can't stand beside published ones, in words."""
    if not protocol.published:
        return []
    if num_images < FEWEST_FOR_PUBLISHED:
        few = f"{num_images:,} samples are fewer than {FEWEST_FOR_PUBLISHED:,}"
        return [f"{few}: our row is not comparable with any published one."]
    if num_images != protocol.num_images:
        return [f"{num_images:,} samples, where the protocol has {protocol.num_images:,}: our row is not comparable."]
    return []


def _interval_notes(resamples: int) -> list[str]:
    if not resamples:
        return []
    return [
        f"In brackets: 95 % intervals from {resamples} bootstrap resamples of the pictures. They cover what other samples of the"
        " same model would change, not what few samples add to every distance."
    ]


def _facts(job: SampleJob, sets: list[SampleSet]) -> dict[str, str]:
    record, described = sets[0].run.record, sets[0].features.provenance
    plans = [each.run.plan for each in sets]
    seeds = " and ".join(f"{plan.seed:,} to {plan.seed + plan.num_images - 1:,}" for plan in plans)
    stages = record["settings"]["stages"]
    settings = {f"settings of {name}": ", ".join(f"{key} {value}" for key, value in one.items()) for name, one in stages.items()}
    return {
        "protocol": job.protocol.name,
        "model": f"{job.cascade.name}, SHA-256 {record['model']['sha256']}",
        "samples": f"{job.num_images:,} of {job.protocol.size} px, seeds {seeds}",
        "labels": job.protocol.labels,
        **settings,
        "reference": job.reference,
        "extractor": f"{described.extractor} ({described.resize_mode}), SHA-256 {described.weights_hash}",
        "crop rule": job.protocol.crop_rule or "not known",
        "software": ", ".join(f"{name} {version}" for name, version in record["software"].items()),
    }
