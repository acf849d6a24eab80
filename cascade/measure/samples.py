"""What `cascade benchmark` does by a protocol of samples: sample, score, and make a report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade.cli.progress import Progress
from cascade.cli.sampling import Request, load
from cascade.eval.features import FeatureExtractor
from cascade.eval.images import ImageSet, image_array, image_folder
from cascade.eval.report import Picture, Report, Row, number_of
from cascade.eval.scoring import FEWEST_FOR_PUBLISHED, MANIFOLD_K, FeatureSet, Scores
from cascade.measure.comparisons import (
    SHOWN,
    Drawings,
    by_class,
    closest_in_features,
    columns_of,
    cost_values,
    device_of,
    distance_curve,
    features_of,
    published_rows,
    scored,
    table_values,
)
from cascade.measure.named import extractor_of, image_source, reference_source
from cascade.measure.protocols import Protocol
from cascade.runs.processes import run_images
from cascade.runs.run import RunPlan, complete, image_name, read_record

if TYPE_CHECKING:
    from cascade.eval.references import Reference

FLOOR_SEED = 0


@dataclass(frozen=True)
class SampleSet:
    """The samples of one run.

    seed: Of the first.
    folder: Of the run.
    images: Its images.
    features: Of these.
    asked: Class of each, [N].
    """

    seed: int
    folder: Path
    images: ImageSet
    features: FeatureSet
    asked: np.ndarray


def samples_report(
    protocol: Protocol,
    request: Request,
    out: Path,
    *,
    num_images: int,
    first_seed: int,
    reference: str | None,
    weights: Path | None,
    resamples: int,
) -> Report | None:
    """Sample, score and compare; None while other processes still make their share of the samples.

    Args:
        protocol: How.
        request: The model, its `size` that of the protocol.
        out: Folder; the samples are kept in `samples/`, or in a folder for each seed of the protocol.
        num_images: How many samples of each seed.
        first_seed: Added to the protocol's seeds.
        reference: As `cascade.measure.named.reference_source` takes it, where the protocol has none of its own.
        weights: Of the feature network; None = its own, or downloaded once.
        resamples: Redrawn sets behind intervals.
    """
    if num_images <= MANIFOLD_K:
        raise ValueError(f"--num-images is {num_images}, but at least {MANIFOLD_K + 1} are needed to score them")
    real = _real(protocol, reference)
    extractor = extractor_of(protocol.extractor, weights, device_of(request))
    heldout, chosen = _heldout(protocol, num_images)
    labels: Any = protocol.labels if chosen is None else tuple(int(label) for label in chosen)
    plans: dict[Path, RunPlan] = {}
    for seed in protocol.seeds:
        folder = out / (f"samples-{first_seed + seed}" if len(protocol.seeds) > 1 else "samples")
        options = {"num_images": num_images, "seed": first_seed + seed, "labels": labels, "format": "png"}
        plans[folder], _ = run_images(request, folder, "sampling", **options)
    if not all((folder / image_name(i)).is_file() for folder in plans for i in range(num_images)):
        return None
    sets = [_sample_set(folder, plan, protocol, extractor) for folder, plan in plans.items()]
    rows, details, pictures = _compared(protocol, request, sets, real, extractor, heldout, resamples)
    first = sets[0]
    record = read_record(first.folder) or {}
    pictures = [by_class(first.images, first.asked, request), *_stages(request, first, out), *pictures]
    limits = _limits(protocol, num_images)
    rows = [*rows, *published_rows(protocol, bool(limits))]
    return Report(
        title=f"{request.manifest.name}: {protocol.title}",
        facts=_facts(protocol, request, record, sets, reference),
        columns=columns_of(rows, ("NFE",)),
        rows=tuple(rows),
        notes=(*limits, *protocol.notes, *_interval_notes(resamples)),
        pictures=tuple(pictures),
        curve=distance_curve(rows, protocol.distance),
        details=details | {"run": record},
    )


def _sample_set(folder: Path, plan: RunPlan, protocol: Protocol, extractor: FeatureExtractor) -> SampleSet:
    images = image_folder(folder, size=protocol.size)
    features = features_of(images, extractor, protocol.crop_rule, "features of the samples")
    return SampleSet(plan.seed, folder, images, features, np.array([plan.label(i) or 0 for i in range(plan.num_images)]))


def _real(protocol: Protocol, reference: str | None) -> ImageSet | Reference:
    """The protocol's reference, or the one that is given: real images, or statistics."""
    text = reference or protocol.reference
    if text is None:
        raise ValueError(f"protocol {protocol.name} needs --reference: {protocol.reference_file}")
    with Progress("drawings", "drawings") as progress:
        return reference_source(
            text,
            image_size=protocol.size,
            extractor=protocol.extractor,
            crop_rule=protocol.crop_rule,
            minimum=MANIFOLD_K + 1,
            progress=progress.update,
        )


def _heldout(protocol: Protocol, num_images: int) -> tuple[ImageSet | None, np.ndarray | None]:
    """Held-out drawings for the floor and their classes, as many as samples; None for protocols that have no such thing."""
    if protocol.labels != "heldout":
        return None, None
    every, labels = image_source("drawings:heldout", size=protocol.size)
    assert labels is not None
    if num_images > len(every):
        raise ValueError(
            f"--num-images is {num_images}, but there are only {len(every)} held-out drawings for the floor of {protocol.name}"
        )
    chosen = np.sort(np.random.default_rng(FLOOR_SEED).permutation(len(every))[:num_images])
    return every.take(chosen), labels[chosen]


def _compared(
    protocol: Protocol,
    request: Request,
    sets: list[SampleSet],
    real: ImageSet | Reference,
    extractor: FeatureExtractor,
    heldout: ImageSet | None,
    resamples: int,
) -> tuple[list[Row], dict[str, Any], list[Picture]]:
    """Our rows, everything measured, and pictures of neighbours."""
    reference, theirs = _reference_features(protocol, real, extractor)
    scores = [scored(each.features, reference, theirs, resamples) for each in sets]
    rows = _sample_rows(protocol, request, sets, scores)
    details: dict[str, Any] = {"scores": {f"seed {each.seed}": asdict(one) for each, one in zip(sets, scores, strict=True)}}
    if theirs is None or not isinstance(real, ImageSet):
        return rows, details, []
    first = sets[0]
    if heldout is None:
        return rows, details, [closest_in_features(first.features, first.images, theirs, real)]
    floor = features_of(heldout, extractor, protocol.crop_rule, "features of held-out drawings")
    floor_scores = scored(floor, reference, theirs, resamples, "intervals of the floor")
    drawings = Drawings((theirs, real), (floor, heldout))
    extra = drawings.values(first.features, first.images, first.asked, resamples)
    rows[0] = Row(name=rows[0].name, values={**rows[0].values, **extra}, note=rows[0].note, ours=True)
    values = table_values(floor_scores, protocol.distance) | drawings.values(floor, heldout, first.asked, resamples)
    note = f"{len(heldout):,} real drawings of the same classes"
    rows.append(Row(name="held-out drawings (floor)", values=values, note=note, ours=True))
    details["scores"]["heldout"] = asdict(floor_scores)
    return rows, details, drawings.pictures(first.features, first.images)


def _reference_features(
    protocol: Protocol, real: ImageSet | Reference, extractor: FeatureExtractor
) -> tuple[Reference | FeatureSet, FeatureSet | None]:
    """The reference, and features of real images where it has any."""
    if isinstance(real, ImageSet):
        theirs = features_of(real, extractor, protocol.crop_rule, "features of the reference", kept=True)
        return theirs, theirs
    if real.images is None:
        return real, None
    images = image_array(real.images, name=real.name)
    return real, features_of(images, extractor, real.provenance.crop_rule, "features of the reference's images", kept=True)


def _sample_rows(protocol: Protocol, request: Request, sets: list[SampleSet], scores: list[Scores]) -> list[Row]:
    """A row for each seed; where there are several, first one of the least distance."""
    name, rows = request.manifest.name, []
    for each, one in zip(sets, scores, strict=True):
        cost, work = cost_values((read_record(each.folder) or {}).get("cost", {}))
        note = ", ".join([f"{len(each.images):,} samples", *[work] * bool(work)])
        title = name if len(sets) == 1 else f"{name}, seed {each.seed}"
        rows.append(Row(name=title, values=table_values(one, protocol.distance) | cost, note=note, ours=True))
    if len(rows) == 1:
        return rows
    least = min(rows, key=lambda row: number_of(row.values[protocol.distance]) or 0.0)
    note = f"the set of least distance, {least.name.rpartition(', ')[2]}; {least.note}"
    return [Row(name=f"{name}, least of {len(rows)} seeds", values=least.values, note=note, ours=True), *rows]


def _stages(request: Request, samples: SampleSet, out: Path) -> list[Picture]:
    """What each stage made of the first samples: earlier stages are run again with the same seeds, the last is the samples'."""
    entries = [entry for entry in request.manifest.stages if entry.size <= samples.images.size]
    if len(entries) < 2:
        return []
    labels = samples.asked[:SHOWN]
    files = {entry.name: [out / "stages" / entry.name / image_name(i) for i in range(len(labels))] for entry in entries[:-1]}
    if not all(file.is_file() for paths in files.values() for file in paths):
        cascade = load(request)
        cascade.set_progress_bar_config(disable=True)
        with Progress("stages of the first samples", "pictures") as progress:
            for i, label in enumerate(labels):
                progress.update(i, len(labels))
                classes = None if cascade.num_classes is None else [int(label)]
                made: Any = cascade(classes, seeds=[samples.seed + i], size=entries[-2].size, **request.arguments())
                for name, paths in files.items():
                    paths[i].parent.mkdir(parents=True, exist_ok=True)
                    with complete(paths[i]) as file:
                        made.stages[name].images[0].save(file, format="PNG")
            progress.update(len(labels), len(labels))
    shown = [image_folder(files[entry.name][0].parent) for entry in entries[:-1]] + [samples.images]
    rows = [
        (f"{entry.name}, {entry.size} px", images.take(np.arange(len(labels))).array())
        for entry, images in zip(entries, shown, strict=True)
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


def _facts(
    protocol: Protocol, request: Request, record: dict[str, Any], sets: list[SampleSet], reference: str | None
) -> dict[str, str]:
    described = sets[0].features.provenance
    seeds = " and ".join(f"{each.seed:,} to {each.seed + len(each.images) - 1:,}" for each in sets)
    stages = record.get("settings", {}).get("stages", {})
    settings = {f"settings of {name}": ", ".join(f"{key} {value}" for key, value in one.items()) for name, one in stages.items()}
    software = ", ".join(f"{name} {version}" for name, version in record.get("software", {}).items())
    return {
        "protocol": protocol.name,
        "model": f"{request.manifest.name}, SHA-256 {record.get('model', {}).get('sha256')}",
        "samples": f"{len(sets[0].images):,} of {protocol.size} px, seeds {seeds}",
        "labels": protocol.labels,
        **settings,
        "reference": reference or protocol.reference or "",
        "extractor": f"{described.extractor} ({described.resize_mode}), SHA-256 {described.weights_hash}",
        "crop rule": protocol.crop_rule or "not known",
        "software": software,
    }
