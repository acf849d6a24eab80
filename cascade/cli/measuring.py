"""What `cascade benchmark` and `cascade evaluate sr` measure, made into reports."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade.cli.progress import Progress
from cascade.cli.running import run_images
from cascade.cli.sampling import Request, load
from cascade.labels import EMOJI
from cascade.protocols import Protocol, Published
from cascade.runs import begin, model_hash, read_record
from cascade.sources import DRAWINGS_CROP_RULE, extractor_of, feature_cache, image_source, reference_file
from cascade.superres import PairedScores, bicubic, enlarge, low_resolution, paired_scores, sr_stage
from eval.features import FeatureExtractor
from eval.images import ImageSet, image_folder
from eval.report import Picture, Report, Row, contact_sheet
from eval.scoring import FEWEST, Measured, Scores, measured, score, score_against

if TYPE_CHECKING:
    from eval.classifier import DrawingClassifier
    from eval.references import Reference

SHOWN = 8  # pictures in a row of a report
FLOOR_SEED = 0


def samples_report(
    protocol: Protocol,
    request: Request,
    out: Path,
    *,
    num_images: int,
    first_seed: int,
    reference: Path | None,
    weights: Path | None,
) -> Report | None:
    """Sample, score and compare; None while other processes still make their share of the samples.

    Args:
        protocol: How.
        request: The model, its `size` that of the protocol.
        out: Folder; the samples are kept in `samples/`.
        num_images: How many samples.
        first_seed: Seed of the first.
        reference: File of the reference, where the protocol has none of its own.
        weights: Of the feature network; None = its own, or downloaded once.
    """
    extractor = extractor_of(protocol.extractor, weights, _device(request))
    real = _real_images(protocol, reference)
    heldout, chosen = _heldout(protocol, num_images)
    labels: Any = protocol.labels if chosen is None else tuple(int(label) for label in chosen)
    plan, ended = run_images(
        request, out / "samples", "sampling", num_images=num_images, seed=first_seed, labels=labels, format="png"
    )
    if not ended:
        return None
    images = image_folder(out / "samples", size=protocol.size, minimum=2)
    samples = _features(images, extractor, protocol.crop_rule, "features of the samples")
    asked = np.array([plan.label(i) or 0 for i in range(num_images)])
    columns, rows, details, pictures = _compared(protocol, request, images, samples, real, extractor, heldout, asked)
    record = read_record(out / "samples") or {}
    rows[0] = _with_cost(rows[0], record.get("cost", {}))
    limits = _limits(protocol, num_images)
    return Report(
        title=f"{request.manifest.name}: {protocol.title}",
        facts=_facts(protocol, request, record, samples),
        columns=(*columns, "NFE"),
        rows=(*rows, *(_published(row, bool(limits)) for row in protocol.published)),
        notes=(*limits, *protocol.notes),
        pictures=(_by_class(images, asked, request), *pictures),
        details=details | {"run": record},
    )


def sr_report(
    request: Request,
    source: str,
    out: Path,
    *,
    stage: str | None,
    num_images: int,
    first_seed: int,
    with_distance: bool,
    protocol: Protocol | None = None,
) -> Report:
    """Make real images small, enlarge them by an SR3 stage and by bicubic interpolation, and compare with the originals.

    Args:
        request: The model.
        source: Real images, as `cascade.sources` names them.
        out: Folder; the stage's pictures are kept in `outputs/`.
        stage: Which; None = the last.
        num_images: The first so many images.
        first_seed: Seed of the first.
        with_distance: Whether to measure EfficientNet-Lite's distance.
        protocol: Whose sizes must be kept and whose published rows are shown; None = no one's.
    """
    cascade = load(request)
    cascade.set_progress_bar_config(disable=True)
    name = sr_stage(cascade, stage)
    size, small = cascade.sizes[name], int(cascade.stages[name].low_res_size)
    if protocol is not None and (size, small) != (protocol.size, protocol.low_res_size):
        wanted = f"{protocol.low_res_size} to {protocol.size}"
        raise ValueError(f"stage {name!r} makes {size} px from {small} px, but protocol {protocol.name} is {wanted} px")
    extractor = extractor_of("efficientnet-lite0") if with_distance else None
    every, found = image_source(source, size=size)
    images = every.take(np.arange(min(num_images, len(every))))
    labels = None if cascade.num_classes is None else _classes(request, images, found)
    originals = images.array()
    low_res = low_resolution(originals, small)
    arguments = request.arguments()
    settings = request.described(cascade, [name]) | {"stage": name, "seed": first_seed, "images": images.source_hash()}
    record = {"format": 1, "model": {"name": request.manifest.name, "sha256": model_hash(request.folder)}, "settings": settings}
    begin(out, record)
    with Progress(f"enlarging by {name}", "pictures") as progress:
        outputs = enlarge(cascade, name, low_res, labels, out / "outputs", arguments, first_seed, progress.update)
    sets = {f"{request.manifest.name}, {name}": outputs, "bicubic": bicubic(low_res, size)}
    scores = {what: paired_scores(made, originals, low_res, extractor) for what, made in sets.items()}
    distance = next(iter(scores.values()))[1]
    rows = [Row(name=what, values=_paired_values(one, distance), ours=True) for what, (one, distance) in scores.items()]
    part = slice(0, SHOWN)
    sheet = contact_sheet([bicubic(low_res[part], size), outputs[part], originals[part]])
    return Report(
        title=f"{request.manifest.name}, {name}: {small} to {size} px",
        facts={
            "model": f"{request.manifest.name}, SHA-256 {record['model']['sha256']}",  # type: ignore[index]
            "images": f"the first {len(originals):,} of {source}, averaged over blocks to {small} px",
        },
        columns=("PSNR", "SSIM", "consistency", *([distance] * with_distance)),
        rows=(*rows, *(_published(row, False) for row in (protocol.published if protocol else ()))),
        notes=(
            "Consistency is the mean squared error to the input after averaging down, in 1e-5; PSNR is in dB.",
            *(protocol.notes if protocol else ()),
        ),
        pictures=(Picture(title="Pictures", caption=f"bicubic, {name}, original, from above", image=sheet),),
        details={"scores": {what: asdict(one) for what, (one, _) in scores.items()}, **record},
    )


def _paired_values(scores: PairedScores, distance: str) -> dict[str, float | str | None]:
    return {"PSNR": scores.psnr, "SSIM": scores.ssim, "consistency": scores.consistency, distance: scores.distance}


def _classes(request: Request, images: ImageSet, found: np.ndarray | None) -> list[int]:
    """What the images show: known of drawings and archives, else by the name of the folder that each lies in."""
    if found is not None and request.classes is not None and len(found) >= len(images):
        return [int(label) for label in found[: len(images)]]
    if images.paths is None:
        raise ValueError(f"{images.name} doesn't say what its images show, which {request.manifest.name!r} must know")
    return [request.label(path.parent.name) for path in images.paths]


def _device(request: Request) -> str:
    """Where features are computed: on the device that is asked for, else on an accelerator if there is one."""
    import torch

    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return request.args.device or (here.type if here is not None else "cpu")


def _real_images(protocol: Protocol, reference: Path | None) -> ImageSet | Reference:
    """The protocol's reference: real images, or statistics in a file."""
    if reference is None:
        if protocol.reference is None:
            raise ValueError(f"protocol {protocol.name} needs --reference: {protocol.reference_file}")
        with Progress("drawings", "drawings") as progress:
            return image_source(protocol.reference, size=protocol.size, progress=progress.update)[0]
    found = reference_file(reference, protocol.size) if reference.suffix == ".npz" else None
    return found or image_source(str(reference), size=protocol.size, minimum=2)[0]


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


def _features(images: ImageSet, extractor: FeatureExtractor, crop_rule: str | None, title: str, kept: bool = False) -> Measured:
    with Progress(title, "pictures") as progress:
        cache = feature_cache() if kept else None
        return measured(images, extractor, crop_rule=crop_rule, cache=cache, on_batch=progress.update)


def _compared(
    protocol: Protocol,
    request: Request,
    images: ImageSet,
    samples: Measured,
    real: ImageSet | Reference,
    extractor: FeatureExtractor,
    heldout: ImageSet | None,
    asked: np.ndarray,
) -> tuple[tuple[str, ...], list[Row], dict[str, Any], list[Picture]]:
    """Columns, our rows, everything measured, and pictures of neighbours."""
    count = f"{len(images):,} samples"
    overlap = ("precision", "recall", "density", "coverage")
    if not isinstance(real, ImageSet):
        scores = score_against(samples, real, extractor)
        values = _values(protocol, scores)
        extra = _inception_score(extractor, images)
        return (
            (protocol.distance, *extra, *overlap[:2]),
            [Row(name=request.manifest.name, values=values | extra, note=count, ours=True)],
            {"scores": {"samples": asdict(scores)}},
            [],
        )
    theirs = _features(real, extractor, protocol.crop_rule, "features of the reference", kept=True)
    scores = score(samples, theirs)
    rows = [Row(name=request.manifest.name, values=_values(protocol, scores), note=count, ours=True)]
    details: dict[str, Any] = {"scores": {"samples": asdict(scores)}}
    columns: tuple[str, ...] = (protocol.distance, "kernel distance x 1000", *overlap)
    pictures = [_neighbours(images, samples, real, theirs)]
    if heldout is not None:
        floor = _features(heldout, extractor, protocol.crop_rule, "features of held-out drawings")
        floor_scores = score(floor, theirs)
        drawings = _drawing_columns(images, heldout, asked, samples, floor, theirs)
        rows = [
            Row(name=rows[0].name, values={**rows[0].values, **drawings[0]}, note=count, ours=True),
            Row(
                name="held-out drawings (floor)",
                values={**_values(protocol, floor_scores), **drawings[1]},
                note=f"{len(heldout):,} real drawings of the same classes",
                ours=True,
            ),
        ]
        columns = (*columns, *drawings[0])
        details["scores"]["heldout"] = asdict(floor_scores)
    return columns, rows, details, pictures


def _values(protocol: Protocol, scores: Scores) -> dict[str, float | str | None]:
    values: dict[str, float | str | None] = {protocol.distance: scores.frechet.distance}
    if scores.kid is not None:
        values["kernel distance x 1000"] = 1000 * scores.kid.mean
    if scores.manifold is not None:
        values |= {name: value for name, value in asdict(scores.manifold).items() if name != "k"}
    return values


def _inception_score(extractor: Any, images: ImageSet) -> dict[str, float | str | None]:
    """IS where the extractor can measure it as the papers do."""
    from eval.metrics import inception_score

    if getattr(extractor, "resize_mode", None) != "legacy_tensorflow" or len(images) < 10:
        return {}
    probabilities = np.concatenate([extractor.probabilities(batch) for batch in images.batches()])
    return {"IS": inception_score(probabilities).mean}


def _drawing_columns(
    images: ImageSet, heldout: ImageSet, asked: np.ndarray, samples: Measured, floor: Measured, train: Measured
) -> tuple[dict[str, float | str | None], dict[str, float | str | None]]:
    """Class agreement and memorisation, of samples and of held-out drawings."""
    from eval.classifier import load_classifier
    from eval.memorisation import memorisation, nearest_in_features

    model, _ = load_classifier()
    near = [nearest_in_features(each.features, train.features) for each in (samples, floor)]
    found: list[dict[str, float | str | None]] = []
    for images_of, neighbours in zip((images, heldout), near, strict=True):
        summary = memorisation(neighbours, near[1])
        found.append(_agreement(model, images_of, asked) | {"closer to training": f"{100 * summary.share_closer:.1f} %"})
    return found[0], found[1]


def _agreement(model: DrawingClassifier, images: ImageSet, asked: np.ndarray) -> dict[str, float | str | None]:
    from eval.classifier import class_agreement, class_probabilities

    if len(EMOJI) != model.config.num_classes or asked.max() >= len(EMOJI):
        return {}
    agreement = class_agreement(class_probabilities(model, images.array()), asked)
    return {"class agreement": f"{100 * agreement.top1:.1f} %", "among five": f"{100 * agreement.top5:.1f} %"}


def _neighbours(images: ImageSet, samples: Measured, real: ImageSet, theirs: Measured) -> Picture:
    from eval.memorisation import Neighbours, nearest_in_features, picture_of_closest

    near = nearest_in_features(samples.features, theirs.features)
    closest = np.argsort(near.distance, kind="stable")[:SHOWN]
    theirs_of = real.take(near.index[closest]).array()
    pairs = Neighbours(near.distance[closest], np.arange(len(closest)))
    return Picture(
        title="Closest to training pictures",
        caption="The samples nearest to a training picture by features, above; below each, that picture.",
        image=picture_of_closest(images.take(closest).array(), theirs_of, pairs),
    )


def _by_class(images: ImageSet, asked: np.ndarray, request: Request) -> Picture:
    """The first samples of the classes that have most."""
    labels, counts = np.unique(asked, return_counts=True)
    chosen = sorted(labels[np.argsort(-counts, kind="stable")][:12])
    rows = [images.take(np.flatnonzero(asked == label)[:SHOWN]).array() for label in chosen]
    names = [request.classes.names[label] if request.classes is not None else str(label) for label in chosen]
    caption = f"The first samples of each class, not chosen; a row for each of {', '.join(names)}."
    return Picture(title="Samples", caption=caption, image=contact_sheet(rows))


def _with_cost(row: Row, cost: dict[str, dict[str, int]]) -> Row:
    nfe = " + ".join(str(stage["nfe"]) for stage in cost.values())
    work = sum(stage["multiply_adds"] for stage in cost.values())
    note = f"{row.note}, {work / 1e9:,.3g} G multiply-adds each" if cost else row.note
    return Row(name=row.name, values={**row.values, "NFE": nfe or None}, note=note, ours=True)


def _limits(protocol: Protocol, num_images: int) -> list[str]:
    """Why our row can't stand beside published ones, in words."""
    if not protocol.published:
        return []
    if num_images < FEWEST:
        return [f"{num_images:,} samples are fewer than {FEWEST:,}: our row is not comparable with any published one."]
    if num_images != protocol.num_images:
        return [f"{num_images:,} samples, where the protocol has {protocol.num_images:,}: our row is not comparable."]
    return []


def _published(row: Published, apart: bool) -> Row:
    note = f"{row.source}; {row.protocol}" if row.protocol else row.source
    return Row(name=row.name, values=dict(row.values), note=note, comparable=row.comparable and not apart)


def _facts(protocol: Protocol, request: Request, record: dict[str, Any], samples: Measured) -> dict[str, str]:
    made, described = record.get("plan", {}), samples.provenance
    return {
        "protocol": protocol.name,
        "model": f"{request.manifest.name}, SHA-256 {record.get('model', {}).get('sha256')}",
        "samples": f"{made.get('num_images'):,} of {protocol.size} px, seeds from {made.get('seed')}",
        "labels": protocol.labels,
        "settings": str(record.get("settings", {}).get("stages")),
        "reference": protocol.reference or "the file given",
        "extractor": f"{described.extractor} ({described.resize_mode}), SHA-256 {described.weights_hash}",
        "crop rule": protocol.crop_rule or DRAWINGS_CROP_RULE,
    }
