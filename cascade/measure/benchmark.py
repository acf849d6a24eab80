"""A model measured by a protocol, so that its figures can stand beside published ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from cascade.eval.features import FeatureExtractor
from cascade.eval.images import ImageSet, image_folder
from cascade.eval.memorisation import nearest_in_features
from cascade.eval.references import FrechetResult, Reference
from cascade.eval.report import Picture, Report, Row, number_of
from cascade.eval.report_files import write_report
from cascade.eval.scoring import MANIFOLD_K, FeatureSet, Scores, feature_set, interval_by_groups, score
from cascade.files import Batch, Progress
from cascade.measure import comparisons
from cascade.measure.comparisons import SHOWN, table_values
from cascade.measure.named import HeldOut, extractor_of, heldout_drawings, reference_source
from cascade.measure.protocols import Protocol, load_protocol
from cascade.measure.super_resolution import evaluate_sr
from cascade.pipeline import CascadePipeline
from cascade.progress import part
from cascade.runs.run import RunOptions, SampleRun, sample_run
from cascade.runs.share import image_name, without_bars

INTERVALS = (
    "In brackets: 95 % intervals, which hold what as many other samples of the same model would have on average; they leave out"
    " what few samples add to every distance. Extrapolated: the distance of infinitely many samples, as far as these tell."
)


def benchmark(
    cascade: CascadePipeline,
    protocol: Protocol | str,
    out: str | Path,
    *,
    num_images: int | None = None,
    seed: int = 0,
    reference: str | None = None,
    weights: Path | None = None,
    classifier_weights: Path | None = None,
    stage: str | None = None,
    resamples: int = 100,
    **run: Unpack[RunOptions],
) -> Report | None:
    """Sample a model by a protocol, or enlarge real images by one of its stages, score the images, and write a report.

    The same call goes on where one was stopped.

    Args:
        cascade: The model.
        protocol: How it is measured; one that comes with the package by its name, or a YAML file.
        out: Folder of images and report: report.md, report.json and report.html.
        num_images: How many samples of each of the protocol's seeds; None = as many as it says.
        seed: Added to the protocol's seeds.
        reference: Real images or statistics, as `cascade.measure.named.reference_source` takes them; None = the protocol's own.
        weights: File of the feature network; None = its own, or downloaded once.
        classifier_weights: File of the classifier of a protocol of super-resolution; None = its own, or downloaded once.
        stage: Which one enlarges, by a protocol of super-resolution; None = the one that makes images of the protocol's size.
        resamples: Redrawn sets behind the 95 % intervals of means; 0 = no intervals and no extrapolation.
        **run: `sampling`, `batch_size`, `processes`, `threads` and `on_progress`, as `sample_run` takes them.

    Returns:
        The report; None while processes that torchrun started still make their shares of the samples.

    Raises:
        ValueError: if the model can't be measured so, or the folder holds something else.
        ConnectionError: if weights or statistics must be downloaded and can't be.
    """
    protocol = protocol if isinstance(protocol, Protocol) else load_protocol(protocol)
    comparisons.check_vocabulary(protocol, cascade.classes, cascade.num_classes)
    source = reference or protocol.reference
    if source is None:
        raise ValueError(f"protocol {protocol.name} needs a reference: {protocol.reference_file}")
    count = num_images or protocol.num_images
    if stage is not None and protocol.kind != "super-resolution":
        raise ValueError(f"stage is {stage!r}, but protocol {protocol.name} measures samples of the whole cascade; leave it out")
    if classifier_weights is not None and protocol.kind != "super-resolution":
        raise ValueError(f"protocol {protocol.name} has no classifier; leave its weights, {classifier_weights}, out")
    if protocol.kind == "super-resolution":
        stage = stage or next((name for name, size in cascade.sizes.items() if size == protocol.size), None)
        options: Any = {key: run.get(key) for key in ("sampling", "batch_size", "on_progress")}
        options |= {"extractor": protocol.extractor, "weights": weights, "crop_rule": protocol.crop_rule, "resamples": resamples}
        options["classifier_weights"] = classifier_weights
        return evaluate_sr(cascade, out, images=source, stage=stage, num_images=count, seed=seed, protocol=protocol, **options)
    return _samples_report(_Job(cascade, protocol, Path(out), count, seed, source, weights, resamples, run))


@dataclass(frozen=True)
class _Job:
    """What is asked for, as `benchmark` has it."""

    cascade: CascadePipeline
    protocol: Protocol
    out: Path
    num_images: int
    seed: int
    reference: str
    weights: Path | None
    resamples: int
    run: RunOptions

    def told(self, title: str) -> Progress:
        return part(self.run.get("on_progress"), title)

    def features(self, images: ImageSet, extractor: FeatureExtractor, what: str) -> FeatureSet:
        return feature_set(images, extractor, crop_rule=self.protocol.crop_rule, on_batch=self.told(f"features of {what}"))

    def scores(self, samples: FeatureSet, reference: Reference | FeatureSet, real: FeatureSet | None, what: str) -> Scores:
        return score(samples, reference, real, resamples=self.resamples, on_resample=self.told(f"extrapolation of {what}"))


@dataclass(frozen=True)
class _Samples:
    """The samples of one run, and their features."""

    run: SampleRun
    images: ImageSet
    features: FeatureSet

    @property
    def asked(self) -> np.ndarray:
        """Class of each, [N]; 0 for a model without classes."""
        return np.array([label or 0 for label in self.run.labels])


def _samples_report(job: _Job) -> Report | None:
    """Sample into `samples/`, or a folder for each seed of the protocol, score and compare; None while other processes still make
    their share of the samples."""
    protocol = job.protocol
    if job.num_images <= MANIFOLD_K:
        raise ValueError(f"num_images is {job.num_images}, but at least {MANIFOLD_K + 1} are needed to score them")
    described: Any = {"image_size": protocol.size, "extractor": protocol.extractor, "crop_rule": protocol.crop_rule}
    real = reference_source(job.reference, **described, progress=job.told("drawings"))
    extractor = extractor_of(protocol.extractor, job.weights, str(job.cascade.device))
    heldout: HeldOut | None = None
    labels: Any = protocol.labels
    if protocol.labels == "heldout":
        heldout = heldout_drawings(protocol.size, job.num_images, job.told("drawings"))
        labels = tuple(int(label) for label in heldout.labels)
    runs = []
    for seed in protocol.seeds:
        folder = job.out / (f"samples-{job.seed + seed}" if len(protocol.seeds) > 1 else "samples")
        plan: Any = {"num_images": job.num_images, "size": protocol.size, "seed": job.seed + seed, "labels": labels}
        runs.append(sample_run(job.cascade, folder, **plan, **job.run))
    if not all(file.is_file() for run in runs for file in run.files):
        return None
    sets = []
    for run in runs:
        images = image_folder(run.folder, size=protocol.size)
        sets.append(_Samples(run, images, job.features(images, extractor, "the samples")))
    scores, rows, details, pictures = _compared(job, sets, real, extractor, heldout)
    first = sets[0]
    differing = comparisons.differences(protocol, job.num_images, scores[0].frechet)
    rows += comparisons.published_rows(protocol, differing)
    report = Report(
        title=f"{job.cascade.name}: {protocol.title}",
        facts=_facts(job, sets, scores[0].frechet),
        columns=comparisons.columns_of(rows, ("NFE",)),
        rows=tuple(rows),
        notes=(*comparisons.not_comparable(protocol, differing), *protocol.notes, *[INTERVALS] * bool(job.resamples)),
        pictures=(comparisons.by_class(first.images, first.asked, job.cascade.classes), *_stages(job, first), *pictures),
        curve=comparisons.distance_curve(rows, protocol.distance),
        details=details | {"run": first.run.record},
    )
    write_report(report, job.out)
    return report


def _compared(
    job: _Job, sets: list[_Samples], real: ImageSet | Reference, extractor: FeatureExtractor, heldout: HeldOut | None
) -> tuple[list[Scores], list[Row], dict[str, Any], list[Picture]]:
    """Scores of each set, our rows, everything measured, and pictures of neighbours."""
    reference, theirs = comparisons.reference_features(real, extractor, job.protocol.crop_rule, job.run.get("on_progress"))
    scores = [job.scores(each.features, reference, theirs, "the samples") for each in sets]
    rows = _sample_rows(job, sets, scores)
    details: dict[str, Any] = {"scores": {f"seed {s.run.plan.seed}": asdict(one) for s, one in zip(sets, scores, strict=True)}}
    if theirs is None or not isinstance(real, ImageSet):
        return scores, rows, details, []
    first = sets[0]
    if heldout is None:
        near = nearest_in_features(first.features.features, theirs.features)
        return scores, rows, details, [comparisons.closest("features", near, first.images, real)]
    floor = job.features(heldout.images, extractor, "held-out drawings")
    floor_scores = job.scores(floor, reference, theirs, "the floor")
    of_samples, of_floor, pictures = comparisons.beside_drawings(
        (theirs, real), (floor, heldout.images), (first.features, first.images), first.asked, job.resamples
    )
    rows[0] = replace(rows[0], values={**rows[0].values, **of_samples})
    note = f"{len(heldout.images):,} real drawings of the same classes"
    values = {**table_values(floor_scores, job.protocol.distance), **of_floor}
    rows.append(Row(name="held-out drawings (floor)", values=values, note=note, ours=True))
    if job.resamples:
        note = f"intervals as if their {len(np.unique(heldout.glyphs)):,} glyphs, not their drawings, were others"
        of_distance = {job.protocol.distance: interval_by_groups(floor, reference, heldout.glyphs)}
        rows.append(Row(name="held-out drawings (floor), by glyph", values=of_distance, note=note, ours=True))
    details["scores"]["heldout"] = asdict(floor_scores)
    return scores, rows, details, pictures


def _sample_rows(job: _Job, sets: list[_Samples], scores: list[Scores]) -> list[Row]:
    """A row for each seed; where there are several, first one of the least distance."""
    name, distance, rows = job.cascade.name, job.protocol.distance, []
    for each, one in zip(sets, scores, strict=True):
        cost = each.run.record["cost"].values()
        nfe, work = " + ".join(str(stage["nfe"]) for stage in cost), sum(stage["multiply_adds"] for stage in cost)
        note = f"{len(each.images):,} samples" + (f", {work / 1e9:,.3g} G multiply-adds each" if cost else "")
        title = name if len(sets) == 1 else f"{name}, seed {each.run.plan.seed}"
        rows.append(Row(name=title, values=table_values(one, distance) | {"NFE": nfe or None}, note=note, ours=True))
    if len(rows) == 1:
        return rows
    least = min(rows, key=lambda row: number_of(row.values[distance]) or 0.0)
    note = f"the set of least distance, {least.name.rpartition(', ')[2]}; {least.note}"
    return [Row(name=f"{name}, least of {len(rows)} seeds", values=least.values, note=note, ours=True), *rows]


def _stages(job: _Job, samples: _Samples) -> list[Picture]:
    """What each stage made of the first samples: earlier stages are run again with the same seeds, the last is the samples'."""
    cascade, labels = job.cascade, samples.asked[:SHOWN]
    names = cascade.stages_to(job.protocol.size)
    if len(names) < 2:
        return []
    folders = {name: job.out / "stages" / name for name in names[:-1]}
    if not all((folder / image_name(i)).is_file() for folder in folders.values() for i in range(len(labels))):
        told = job.told("stages of the first samples")
        options: Any = {key: job.run.get(key) for key in ("sampling", "batch_size")}
        with without_bars(cascade), Batch() as batch:
            for i, label in enumerate(labels):
                told(i, len(labels))
                given = None if cascade.num_classes is None else [int(label)]
                made: Any = cascade(given, seeds=[samples.run.plan.seed + i], size=cascade.sizes[names[-2]], **options)
                for name, folder in folders.items():
                    with batch.file(folder / image_name(i)) as file:
                        made.stages[name].images[0].save(file, format="PNG")
            told(len(labels), len(labels))
    shown = [*(image_folder(folder) for folder in folders.values()), samples.images]
    sets = [images.take(np.arange(len(labels))).array() for images in shown]
    rows = tuple((f"{name}, {cascade.sizes[name]} px", images) for name, images in zip(names, sets, strict=True))
    caption = "The first samples after each stage, shown equally large; each stage starts from the picture above."
    return [Picture(title="Stages", caption=caption, rows=rows)]


def _facts(job: _Job, sets: list[_Samples], frechet: FrechetResult) -> dict[str, str]:
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
        "reference": f"{job.reference}, {comparisons.reference_shown(frechet)}",
        "extractor": f"{described.extractor} ({described.resize_mode}), SHA-256 {described.weights_hash}",
        "crop rule": job.protocol.crop_rule or "not known",
        "software": ", ".join(f"{name} {version}" for name, version in record["software"].items()),
    }
