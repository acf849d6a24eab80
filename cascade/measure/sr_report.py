"""What `cascade evaluate sr` and protocols of super-resolution do: enlarge real images made small, and make a report."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade.cli.progress import Progress
from cascade.cli.sampling import Request, load
from cascade.eval.features import FeatureExtractor
from cascade.eval.images import Images, ImageSet
from cascade.eval.references import Reference, measure, reference_of
from cascade.eval.report import Picture, Report, Row, Value
from cascade.measure.comparisons import SHOWN, columns_of, device_of, published_rows
from cascade.measure.named import Classify, classifier_of, crop_rule_of, extractor_of, image_source
from cascade.measure.protocols import Protocol
from cascade.measure.super_resolution import (
    Enlarge,
    bicubic,
    by_regression,
    by_stage,
    distance_values,
    enlarged,
    error_values,
    low_resolution,
    paired_values,
    sr_stage,
)
from cascade.pipeline import CascadePipeline
from cascade.runs.run import begin, model_hash

CPU_BATCH_SIZE, ACCELERATOR_BATCH_SIZE = 1, 8


@dataclass(frozen=True, kw_only=True)
class SROptions:
    """What is measured of super-resolution.

    images: Real images, as `cascade.measure.named.image_source` takes them.
    stage: Name of the stage; None = the last.
    regression: Folder of SR3's regression baseline; None = no row of it.
    num_images: The first so many images.
    seed: Of the first image.
    extractor: Feature network of the distance; None = no distance.
    weights: Of that network; None = its own, or downloaded once.
    crop_rule: How the images were cut from their originals.
    resamples: Redrawn sets behind intervals.
    """

    images: str
    stage: str | None = None
    regression: Path | None = None
    num_images: int = 100
    seed: int = 0
    extractor: str | None = "efficientnet-lite0"
    weights: Path | None = None
    crop_rule: str | None = None
    resamples: int = 0


@dataclass(frozen=True)
class Measure:
    """How the images of a row are measured, against originals and their small versions."""

    originals: Images
    low_res: Images
    labels: list[int] | None
    extractor: FeatureExtractor | None
    reference: Reference | None
    classify: Classify | None
    crop_rule: str | None
    resamples: int

    def values(self, images: Images, paired: bool = True) -> dict[str, Value]:
        """Of outputs; of the originals themselves with `paired` False, whose distance would be 0."""
        found: dict[str, Value] = {}
        if paired:
            found |= paired_values(images, self.originals, self.low_res, self.resamples)
        if self.extractor is not None and self.reference is not None:
            distance = distance_values(images, self.reference, self.extractor, self.crop_rule, self.resamples)
            found |= distance if paired else {name: value for name, value in distance.items() if name == "IS"}
        if self.classify is not None and self.labels is not None:
            found |= error_values(images, self.labels, self.classify, self.resamples)
        return found


def sr_report(request: Request, options: SROptions, out: Path, protocol: Protocol | None = None) -> Report:
    """Make real images small, enlarge them by an SR3 stage, by regression and by bicubic interpolation, and compare.

    Args:
        request: The model.
        options: What is measured.
        out: Folder; the stage's pictures are kept in `outputs/`, those of a regression in `regression/`.
        protocol: Whose sizes must be kept and whose published rows are shown; None = no one's.

    Raises:
        ValueError: if model, images and protocol don't fit together.
    """
    extractor = None
    if options.extractor is not None:
        extractor = extractor_of(options.extractor, options.weights, device_of(request))
    cascade = load(request)
    cascade.set_progress_bar_config(disable=True)
    name = sr_stage(cascade, options.stage)
    size, small = cascade.sizes[name], int(cascade.stages[name].low_res_size)
    if protocol is not None and (size, small) != (protocol.size, protocol.low_res_size):
        wanted = f"{protocol.low_res_size} to {protocol.size}"
        raise ValueError(f"stage {name!r} makes {size} px from {small} px, but protocol {protocol.name} is {wanted} px")
    every, known = image_source(options.images, size=size)
    images = every.take(np.arange(min(options.num_images, len(every))))
    labels = _classes(request, images, known, required=cascade.num_classes is not None)
    stages = {"outputs": by_stage(cascade, name, request.arguments())}
    if options.regression is not None:
        stages["regression"] = _regression(cascade, name, options.regression, size, small)
    begin(out, _record(request, cascade, name, options, images))
    originals = images.array()
    low_res = low_resolution(originals, small)
    made = _outputs(cascade, stages, low_res, labels, out, options.seed, request.args)
    rule = crop_rule_of(options.images, options.crop_rule)
    reference = None
    if extractor is not None:
        reference = reference_of(images.name, measure(images, extractor, crop_rule=rule), images.source_hash())
    classifier = classifier_of(request.classes, device_of(request)) if labels is not None else None
    classify = None if classifier is None else classifier[1]
    how = Measure(originals, low_res, labels, extractor, reference, classify, rule, options.resamples)
    sets = {f"{request.manifest.name}, {name}": made["outputs"]}
    sets |= {"regression": made["regression"]} if "regression" in made else {}
    sets["bicubic"] = bicubic(low_res, size)
    rows = [Row(name=what, values=how.values(one), note=f"{len(images):,} images", ours=True) for what, one in sets.items()]
    rows.append(Row(name="originals", values=how.values(originals, paired=False), note="the images themselves", ours=True))
    rows += published_rows(protocol, False) if protocol else ()
    return Report(
        title=protocol.title if protocol else f"{request.manifest.name}, {name}: {small} to {size} px",
        facts=_facts(request, name, options, images, small, extractor, classifier),
        columns=columns_of(rows),
        rows=tuple(rows),
        notes=(*_notes(options, classifier), *(protocol.notes if protocol else ())),
        pictures=(_picture(low_res, {**sets, "original": originals}),),
        details={"run": _record(request, cascade, name, options, images)},
    )


def _outputs(
    cascade: CascadePipeline,
    stages: Mapping[str, Enlarge],
    low_res: Images,
    labels: list[int] | None,
    out: Path,
    seed: int,
    args: Namespace,
) -> dict[str, Images]:
    """What each stage makes of the small images, kept in a folder of its name."""
    on_cpu = next(iter(cascade.stages.values())).device.type == "cpu"
    batch_size = args.batch_size or (CPU_BATCH_SIZE if on_cpu else ACCELERATOR_BATCH_SIZE)
    classes = labels if cascade.num_classes is not None else None
    made = {}
    for title, enlarge in stages.items():
        with Progress("enlarging" if title == "outputs" else "enlarging by regression", "pictures") as progress:
            made[title] = enlarged(
                enlarge, low_res, classes, out / title, seed=seed, batch_size=batch_size, on_progress=progress.update
            )
    return made


def _regression(cascade: CascadePipeline, name: str, folder: Path, size: int, small: int) -> Enlarge:
    stage = cascade.stages[name]
    return by_regression(folder, size, small, stage.unet.dtype, stage.device)


def _record(request: Request, cascade: CascadePipeline, name: str, options: SROptions, images: ImageSet) -> dict[str, Any]:
    """What the outputs depend on, for `run.json`."""
    settings = request.described(cascade, [name]) | {"stage": name, "seed": options.seed, "images": images.source_hash()}
    if options.regression is not None:
        settings["regression"] = model_hash(options.regression)
    return {"format": 1, "model": {"name": request.manifest.name, "sha256": model_hash(request.folder)}, "settings": settings}


def _classes(request: Request, images: ImageSet, known: np.ndarray | None, required: bool) -> list[int] | None:
    """What the images show: known of drawings and archives, else by the name of the folder that each lies in; None where neither
    says so and the model needs none."""
    if known is not None and request.classes is not None and len(known) >= len(images):
        return [int(label) for label in known[: len(images)]]
    if images.paths is None and required:
        raise ValueError(f"{images.name} doesn't say what its images show, which {request.manifest.name!r} must know")
    if images.paths is None:
        return None
    try:
        return [request.label(path.parent.name) for path in images.paths]
    except ValueError:
        if required:
            raise
        return None


def _picture(low_res: Images, sets: Mapping[str, Images]) -> Picture:
    shown = {"input": low_res, **{what: images for what, images in sets.items() if what != "input"}}
    rows = tuple((what, images[:SHOWN]) for what, images in shown.items())
    caption = "The first images, shown equally large; the input is what all others start from."
    return Picture(title="Pictures", caption=caption, rows=rows)


def _notes(options: SROptions, classifier: tuple[str, Classify] | None) -> list[str]:
    notes = [
        "PSNR, in dB, SSIM and consistency, the squared error to the input after averaging down in 1e-5, are means over images."
    ]
    if classifier is not None:
        notes.append(f"Errors are those of {classifier[0]}, not of SR3's ResNet-50, and stand beside no published ones.")
    if options.resamples:
        notes.append(f"In brackets: 95 % intervals from {options.resamples} bootstrap resamples of the images.")
    return notes


def _facts(
    request: Request,
    name: str,
    options: SROptions,
    images: ImageSet,
    small: int,
    extractor: FeatureExtractor | None,
    classifier: tuple[str, Classify] | None,
) -> dict[str, str]:
    facts = {
        "model": f"{request.manifest.name}, SHA-256 {model_hash(request.folder)}",
        "stage": name,
        "images": f"the first {len(images):,} of {options.images}, averaged over blocks to {small} px",
        "seeds": f"from {options.seed}",
    }
    if options.regression is not None:
        facts["regression"] = f"{options.regression.name}, SHA-256 {model_hash(options.regression)}"
    if extractor is not None:
        facts["extractor"] = f"{extractor.name} ({extractor.resize_mode}), SHA-256 {extractor.weights_hash}"
    return facts | ({} if classifier is None else {"classifier": classifier[0]})
